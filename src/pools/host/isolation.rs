//! What separates the tasks of a host pool from each other and from the agent: the settings, and whether this machine
//! allows them.

use std::io;
use std::path::Path;

use nix::unistd::{Uid, User as SystemUser, getgrouplist};

use super::protocol::{Isolation, User};
use super::shim::{self, Confinement, Namespaces};
use super::{Settings, cgroup, notes, process};

/// Whether tasks have namespaces of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// If this machine allows it. If not, a note of the pool reports it.
    #[default]
    IfPossible,
    /// If this machine does not allow it, the pool does not start.
    Required,
    /// Tasks run beside the agent.
    None,
}

/// The user that tasks run as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RunAs {
    /// The agent's user, unless that is root: then `nobody`.
    #[default]
    Unprivileged,
    /// The agent's user, also if that is root.
    Agent,
    /// This user. Only an agent that runs as root can name another one than its own.
    Named(String),
}

/// The user of tasks that an agent starts as root.
const UNPRIVILEGED: &str = "nobody";

/// What a pool's tasks get, and what that does not promise, in words for operators and job owners.
#[derive(Clone, Debug, Default)]
pub(super) struct Resolved {
    /// `None`: tasks are not separated.
    pub(super) isolation: Option<Isolation>,
    pub(super) notes: Vec<String>,
}

/// Finds out how tasks can be separated here, by starting a process that is.
///
/// # Errors
/// If the user does not exist or can't be taken, or the settings require what this machine does not allow.
pub(super) fn resolve(settings: &Settings) -> io::Result<Resolved> {
    if settings.isolation == Mode::None {
        let why = "the pool's file has isolation = \"none\"";
        return Ok(Resolved { isolation: None, notes: vec![notes::not_separated(why)] });
    }
    let user = user(&settings.run_as)?;
    let isolation = Isolation { hidden: settings.hidden.clone(), user };
    match try_isolation(&settings.program, &isolation) {
        Ok(()) => {
            let notes = vec![notes::shared(isolation.user.as_ref())];
            Ok(Resolved { isolation: Some(isolation), notes })
        }
        Err(error) if settings.isolation == Mode::Required => {
            Err(io::Error::other(format!("host.isolation: tasks can't be separated here: {error}")))
        }
        Err(error) if matches!(settings.run_as, RunAs::Named(_)) && isolation.user.is_some() => {
            Err(io::Error::other(format!("host.run_as: tasks can't run as another user here: {error}")))
        }
        Err(error) => Ok(Resolved { isolation: None, notes: vec![notes::not_separated(&error.to_string())] }),
    }
}

fn try_isolation(program: &Path, isolation: &Isolation) -> io::Result<()> {
    let namespaces = Namespaces {
        hidden: isolation.hidden.clone(),
        private: None,
        directory: "/".into(),
        cgroup_mount: cgroup::mount_point(),
        user: isolation.user.clone(),
        shares_memory: false,
        supervisors_group: process::own_group(),
    };
    shim::try_confinement(program, &Confinement { procs: None, namespaces: Some(namespaces) })
}

/// The user to become; `None` if tasks run as the agent's user.
fn user(run_as: &RunAs) -> io::Result<Option<User>> {
    let own = Uid::effective();
    let name = match run_as {
        RunAs::Agent => return Ok(None),
        RunAs::Unprivileged if !own.is_root() => return Ok(None),
        RunAs::Unprivileged => UNPRIVILEGED,
        RunAs::Named(name) => name,
    };
    let found = SystemUser::from_name(name)?;
    let found = found.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("host.run_as: this machine has no user {name:?}"))
    })?;
    if found.uid == own {
        return Ok(None);
    }
    if !own.is_root() {
        let message =
            format!("host.run_as: only root can run tasks as {name:?}; the agent runs as user {own}");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let name_c = std::ffi::CString::new(found.name.as_str())?;
    Ok(Some(User {
        groups: getgrouplist(&name_c, found.gid)?.into_iter().map(|group| group.as_raw()).collect(),
        home: found.dir.to_string_lossy().into_owned(),
        name: found.name,
        uid: found.uid.as_raw(),
        gid: found.gid.as_raw(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_does_not_exist_is_refused_by_name() {
        let error = user(&RunAs::Named("no such user".to_owned())).expect_err("no such user").to_string();
        assert_eq!(error, "host.run_as: this machine has no user \"no such user\"");
    }

    #[test]
    fn tasks_of_root_run_as_an_unprivileged_user_unless_the_file_names_root() {
        let name = |run_as| user(&run_as).expect("a user").map(|user| user.name);
        let expected = Uid::effective().is_root().then(|| UNPRIVILEGED.to_owned());
        assert_eq!(name(RunAs::Unprivileged), expected);
        assert_eq!(name(RunAs::Agent), None);
        if Uid::effective().is_root() {
            assert_eq!(name(RunAs::Named("root".to_owned())), None);
        }
    }
}
