//! Output of a task: its files, and the bound of their size.
//!
//! The beginning and the end of a long stream stay, and the middle becomes a hole, so that offsets don't
//! change. A file system makes holes of whole blocks only, so the exact range that is dropped is written
//! to a file beside the stream, before the range is dropped. A reader that reads the data first and this
//! record afterwards never takes the zeros of a hole for output.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::pools::{Stream, output_times};

/// The file mode of complete output: no write bits.
const SEALED: u32 = 0o400;

/// Both streams of a task, in the order in which their sizes are stored.
pub(super) const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// The dropped range of a stream: the bytes from `from` up to, but not including, `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dropped {
    pub(super) from: u64,
    pub(super) to: u64,
}

/// What a poll of a task's output found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Growth {
    /// The output grows so fast that it must be polled again soon.
    pub(super) fast: bool,
    /// The file system can't drop the middle: only stopping the task bounds its disk use.
    pub(super) unbounded: bool,
}

/// Returns the file of one stream of the task with this rank.
pub(super) fn path(directory: &Path, rank: usize, stream: Stream) -> PathBuf {
    let name = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    directory.join(format!("{rank}.{name}"))
}

/// Opens a file that a task can replace, without waiting and without following what it may have put in its place.
///
/// # Errors
/// `InvalidData` if it is a link, a pipe, a device or a directory; else the error of the file system.
pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let replaced =
        || io::Error::new(io::ErrorKind::InvalidData, "the task has replaced the file of its output");
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match options.custom_flags(flags.bits().cast_signed()).open(path) {
        // The errors for a link, for a pipe without a reader, and for a directory.
        Err(error)
            if [Errno::LOOP, Errno::NXIO, Errno::ISDIR]
                .map(Errno::raw_os_error)
                .map(Some)
                .contains(&error.raw_os_error()) =>
        {
            return Err(replaced());
        }
        opened => opened?,
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(replaced()) }
}

/// Opens the file of one stream for its task to append to; creates it if it does not exist.
pub(super) fn create(directory: &Path, rank: usize, stream: Stream) -> io::Result<File> {
    let path = path(directory, rank, stream);
    let file = open(&path, OpenOptions::new().create(true).append(true))?;
    // A task that is started by a shell instead has its files already.
    if file.metadata()?.len() == 0 {
        output_times::begin(&path)?;
    }
    // The task inherits the flags.
    rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

/// Marks the output of a task as complete by removing the write bits. If the task never wrote, its output is
/// created empty.
pub(super) fn seal(directory: &Path, rank: usize) {
    for stream in STREAMS {
        let path = path(directory, rank, stream);
        if path.symlink_metadata().is_err() {
            let _ = create(directory, rank, stream);
        }
        // Without the mark readers only wait for more output that never comes.
        let opened = open(&path, OpenOptions::new().read(true));
        let _ = opened.and_then(|file| file.set_permissions(Permissions::from_mode(SEALED)));
    }
}

/// Returns whether output has the mark of [`seal`].
pub(super) fn is_sealed(found: &Metadata) -> bool {
    found.permissions().mode() & 0o222 == 0
}

/// Returns the range that was dropped of the stream in this file, if any.
pub(super) fn dropped(file: &Path) -> Option<Dropped> {
    files::read_json(&record_of(file)).ok().flatten()
}

/// Bounds each stream of the task with this rank to `stream_max_bytes`, and records when it grew.
///
/// `sizes` are the sizes at the last poll; this updates them.
pub(super) fn bound(directory: &Path, rank: usize, stream_max_bytes: u64, sizes: &mut [u64; 2]) -> Growth {
    let mut growth = Growth::default();
    for (stream, last) in STREAMS.into_iter().zip(sizes) {
        let file = path(directory, rank, stream);
        let Some(found) = file.symlink_metadata().ok().filter(Metadata::is_file) else { continue };
        let size = found.len();
        growth.fast |= size.saturating_sub(*last) > stream_max_bytes / 8;
        if size < *last {
            // The task truncated the file: the dropped range belongs to output that is gone.
            let _ = std::fs::remove_file(record_of(&file));
            let _ = output_times::begin(&file);
        }
        if size != *last {
            // Without its time, output is printed all the same.
            let _ = output_times::record(&file, size, output_times::written_at(&found));
        }
        if size > stream_max_bytes && size != *last {
            growth.unbounded |= drop_middle(&file, size, stream_max_bytes).is_err();
        }
        *last = size;
    }
    growth
}

fn drop_middle(file: &Path, size: u64, stream_max_bytes: u64) -> io::Result<()> {
    let from = stream_max_bytes / 2;
    let to = size - stream_max_bytes / 2;
    files::replace_json_unsynced(&record_of(file), &Dropped { from, to })?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let file = open(file, OpenOptions::new().write(true))?;
    Ok(fallocate(&file, punch, from, to - from)?)
}

/// The file that has the dropped range of a stream.
fn record_of(file: &Path) -> PathBuf {
    file.with_added_extension("dropped")
}
