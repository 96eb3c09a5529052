//! Folders and files that hold secrets: only their owner may enter and read them, whatever the umask was.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Creates a folder, with missing ones above it, that only its owner can enter, or takes over one that exists. One
/// of our own that others can only read is closed to them.
///
/// # Errors
/// `PermissionDenied`, with the path, if the folder belongs to another user, if another user's link leads to it, or
/// if others could have put something into it; else the error of the file system.
pub fn folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let place = path.symlink_metadata()?;
    let owner = place.uid();
    if place.is_symlink() && owner != own_user() && owner != 0 {
        return Err(refused(path, &format!("is a link of user {owner}")));
    }
    let found = path.metadata()?;
    check_owner(path, &found)?;
    let mode = found.mode() & 0o777;
    if mode & 0o022 != 0 && std::fs::read_dir(path)?.next().is_some() {
        let problem = format!(
            "has mode {mode:o}, so others could have put files into it; look at them, then chmod 700"
        );
        return Err(refused(path, &problem));
    }
    if mode & 0o077 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Opens a file for reading that only this user can have written.
///
/// # Errors
/// `PermissionDenied`, with the path, if it is a link, belongs to another user, or others can read or write it.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(refused(path, "is a link"));
        }
        opened => opened?,
    };
    let found = file.metadata()?;
    check_owner(path, &found)?;
    let mode = found.mode() & 0o777;
    if !found.is_file() || mode & 0o077 != 0 {
        let problem =
            format!("has mode {mode:o}: others can read or write it; if its content is yours, chmod 600");
        return Err(refused(path, if found.is_file() { &problem } else { "is not a file" }));
    }
    Ok(file)
}

fn check_owner(path: &Path, found: &Metadata) -> io::Result<()> {
    let owner = found.uid();
    if owner == own_user() { Ok(()) } else { Err(refused(path, &format!("belongs to user {owner}"))) }
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn refused(path: &Path, problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, format!("{} {problem}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn folders_are_closed_to_others_or_refused() {
        let top = tempfile::tempdir().unwrap();
        let [new, readable, empty, writable] =
            ["new/deep", "readable", "empty", "writable"].map(|name| top.path().join(name));
        folder(&new).unwrap();
        assert_eq!(mode(&new), 0o700);
        for (path, bits, file) in [(&readable, 0o755, true), (&empty, 0o777, false), (&writable, 0o775, true)]
        {
            std::fs::create_dir(path).unwrap();
            if file {
                std::fs::write(path.join("file"), "").unwrap();
            }
            std::fs::set_permissions(path, Permissions::from_mode(bits)).unwrap();
        }
        folder(&readable).unwrap();
        folder(&empty).unwrap();
        assert_eq!((mode(&readable), mode(&empty)), (0o700, 0o700));
        let error = folder(&writable).unwrap_err().to_string();
        assert!(error.contains("writable has mode 775"), "{error}");
        let link = top.path().join("link");
        symlink(&new, &link).unwrap();
        folder(&link).unwrap();
        if own_user() == 0 {
            std::os::unix::fs::lchown(&link, Some(1), Some(1)).unwrap();
            let error = folder(&link).unwrap_err().to_string();
            assert!(error.contains("link is a link of user 1"), "{error}");
            chown(&new, Some(1), Some(1)).unwrap();
            let error = folder(&new).unwrap_err().to_string();
            assert!(error.contains("deep belongs to user 1"), "{error}");
        }
    }

    #[test]
    fn files_of_others_and_for_others_are_refused() {
        let top = tempfile::tempdir().unwrap();
        let file = top.path().join("file");
        std::fs::write(&file, "secret").unwrap();
        let with_mode = |bits| {
            std::fs::set_permissions(&file, Permissions::from_mode(bits)).unwrap();
            open(&file).map_err(|error| error.to_string())
        };
        assert!(with_mode(0o600).is_ok() && with_mode(0o400).is_ok());
        assert!(with_mode(0o644).unwrap_err().contains("file has mode 644"));
        assert!(with_mode(0o620).unwrap_err().contains("file has mode 620"));
        let link = top.path().join("link");
        symlink(&file, &link).unwrap();
        assert!(open(&link).unwrap_err().to_string().contains("link is a link"));
        if own_user() == 0 {
            with_mode(0o600).unwrap();
            chown(&file, Some(1), Some(1)).unwrap();
            assert!(open(&file).unwrap_err().to_string().contains("belongs to user 1"));
        }
    }
}
