//! Removes what tasks left in their folders, and nothing else.
//!
//! A task can put a link in a folder's place, or mount a foreign folder into its own. So every folder is opened
//! relative to its parent's descriptor, by `openat2` with flags that fail at links and mounts (Linux 5.6). What
//! can't be opened that way stays where it is.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags};
use rustix::io::Errno;

/// Levels that are removed by recursion; what lies deeper is moved up first, so that neither the stack nor the
/// descriptors run out.
const DEPTH_MAX: usize = 64;

/// Removes a folder with all that it contains, except what is mounted there. A link or a file in its place is
/// removed itself. Does nothing if there is nothing.
///
/// # Errors
/// The first error; the rest has been removed nevertheless. `CrossesDevices` if something is mounted there.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = match rustix::fs::openat(CWD, parent, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        parent => parent?,
    };
    let name = CString::new(name.as_encoded_bytes()).map_err(io::Error::other)?;
    match open_below(parent.as_fd(), &name) {
        Ok(folder) => {
            Removal { top: folder.as_fd(), moved: 0 }.contents(folder.as_fd(), 0)?;
            Ok(rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR)?)
        }
        Err(Errno::LOOP | Errno::NOTDIR) => Ok(rustix::fs::unlinkat(&parent, &name, AtFlags::empty())?),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Empties those sub-folders of a folder whose names have this extension. The sub-folders stay.
///
/// # Errors
/// As [`remove_tree`].
pub(super) fn empty_subfolders(path: &Path, extension: &str) -> io::Result<()> {
    let folder = match rustix::fs::openat(CWD, path, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        folder => folder?,
    };
    let ending = format!(".{extension}");
    let mut result = Ok(());
    for (name, _) in entries(folder.as_fd())? {
        if name.to_bytes().ends_with(ending.as_bytes()) {
            let emptied = match open_below(folder.as_fd(), &name) {
                Ok(opened) => Removal { top: opened.as_fd(), moved: 0 }.contents(opened.as_fd(), 0),
                // A link or a file in the folder's place.
                Err(Errno::LOOP | Errno::NOTDIR) => rustix::fs::unlinkat(&folder, &name, AtFlags::empty()),
                Err(error) => Err(error),
            };
            result = result.and(emptied);
        }
    }
    Ok(result?)
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a folder by its name in another, unless it is a link or something is mounted there.
fn open_below(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let open = |flags| rustix::fs::openat2(parent, name, flags | OFlags::NOFOLLOW, Mode::empty(), within);
    match open(FOLDER) {
        Err(Errno::ACCESS) => {
            // A task may forbid itself to enter its folder. The descriptor names the very folder.
            let closed = open(OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)?;
            let itself = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&closed));
            rustix::fs::chmodat(CWD, itself, Mode::from_raw_mode(0o700 as RawMode), AtFlags::empty())?;
            open(FOLDER)
        }
        opened => opened,
    }
}

fn entries(folder: BorrowedFd<'_>) -> Result<Vec<(CString, FileType)>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

/// A removal in progress.
struct Removal<'a> {
    /// The folder into which what lies too deep is moved.
    top: BorrowedFd<'a>,
    moved: u64,
}

impl Removal<'_> {
    /// Removes what a folder contains; goes on after errors and returns the first.
    fn contents(&mut self, folder: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
        loop {
            let (mut result, moved) = (Ok(()), self.moved);
            for (name, kind) in entries(folder)? {
                result = result.and(self.entry(folder, &name, kind, depth));
            }
            // What was moved up during this pass is in the top folder now.
            if depth > 0 || moved == self.moved || result.is_err() {
                return result;
            }
        }
    }

    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        kind: FileType,
        depth: usize,
    ) -> Result<(), Errno> {
        if !matches!(kind, FileType::Directory | FileType::Unknown) {
            return rustix::fs::unlinkat(parent, name, AtFlags::empty());
        }
        if depth >= DEPTH_MAX {
            self.moved += 1;
            return rustix::fs::renameat(parent, name, self.top, format!("weir-too-deep-{}", self.moved));
        }
        match open_below(parent, name) {
            Ok(folder) => {
                let emptied = self.contents(folder.as_fd(), depth + 1);
                emptied.and_then(|()| rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR))
            }
            Err(Errno::LOOP | Errno::NOTDIR) => rustix::fs::unlinkat(parent, name, AtFlags::empty()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn links_are_removed_and_what_they_lead_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("data"), "precious").unwrap();
        let attempt = folder.path().join("attempt");
        fs::create_dir_all(attempt.join("0.work/deep/er")).unwrap();
        fs::write(attempt.join("0.stdout"), "output").unwrap();
        fs::write(attempt.join("0.work/deep/er/file"), "").unwrap();
        symlink(&foreign, attempt.join("0.work/link")).unwrap();
        symlink(&foreign, attempt.join("0.work/deep/link")).unwrap();
        // In the place of the folder itself.
        symlink(&foreign, attempt.join("1.work")).unwrap();
        empty_subfolders(&attempt, "work").unwrap();
        assert_eq!(fs::read_dir(attempt.join("0.work")).unwrap().count(), 0);
        assert!(fs::symlink_metadata(attempt.join("1.work")).is_err());
        assert_eq!(fs::read_to_string(attempt.join("0.stdout")).unwrap(), "output");
        symlink(&foreign, attempt.join("link")).unwrap();
        remove_tree(&attempt).unwrap();
        assert!(!attempt.exists());
        let link = folder.path().join("link");
        symlink(&foreign, &link).unwrap();
        remove_tree(&link).unwrap();
        empty_subfolders(&link, "work").unwrap();
        assert!(fs::symlink_metadata(&link).is_err());
        assert_eq!(fs::read_to_string(foreign.join("data")).unwrap(), "precious");
        remove_tree(&folder.path().join("nothing")).unwrap();
    }

    #[test]
    fn deep_and_closed_folders_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("top");
        fs::create_dir(&top).unwrap();
        // Deeper than a path may be long, step by step.
        let mut at: OwnedFd = fs::File::open(&top).unwrap().into();
        for _ in 0..3_000 {
            rustix::fs::mkdirat(&at, "a", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "a", FOLDER, Mode::empty()).unwrap();
        }
        fs::create_dir(top.join("closed")).unwrap();
        fs::write(top.join("closed/file"), "").unwrap();
        fs::set_permissions(top.join("closed"), PermissionsExt::from_mode(0o000)).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    }
}
