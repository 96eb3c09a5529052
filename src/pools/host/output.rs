//! Output of a task: its files, and how long output is kept within its bound.
//!
//! Head and tail of each stream stay and the middle becomes a hole, so that offsets stay what they
//! were. A file system makes holes of whole blocks only, so what was dropped is written down beside
//! it, to the byte and before it is dropped: whoever reads the data first and this note afterwards
//! never takes the zeros of a hole for output.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use crate::pools::{Stream, saved};

/// The mode of output to which nothing will be added.
const SEALED: u32 = 0o400;

/// Both streams, in the order of their bounds.
pub(super) const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// What was not kept of a stream: the bytes from `from` up to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dropped {
    pub(super) from: u64,
    pub(super) to: u64,
}

/// What a look at a task's output found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// It grows so fast that it should be looked at again soon.
    pub(super) fast: bool,
    /// The file system can't drop the middle: nothing but an end of the task bounds the disk.
    pub(super) unbounded: bool,
}

/// The file of one stream of the task of this rank.
pub(super) fn path(directory: &Path, rank: usize, stream: Stream) -> PathBuf {
    let name = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    directory.join(format!("{rank}.{name}"))
}

/// Opens the file of one stream for its task to write to.
pub(super) fn create(directory: &Path, rank: usize, stream: Stream) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path(directory, rank, stream))
}

/// Marks a task's output as complete: it loses its write bits. That of a task which never wrote is empty.
pub(super) fn seal(directory: &Path, rank: usize) {
    for stream in STREAMS {
        let path = path(directory, rank, stream);
        if !path.exists() {
            let _ = create(directory, rank, stream);
        }
        // Without the mark, readers only don't know that nothing will be added.
        let _ = std::fs::set_permissions(path, Permissions::from_mode(SEALED));
    }
}

/// Tells whether output bears that mark.
pub(super) fn is_sealed(found: &Metadata) -> bool {
    found.permissions().mode() & 0o222 == 0
}

/// What was dropped of the stream in this file, if anything was.
pub(super) fn dropped(file: &Path) -> Option<Dropped> {
    saved::read(&note_of(file)).ok().flatten()
}

/// Bounds the output of the task of this rank to `stream_max_bytes` for each stream.
///
/// `seen` are the sizes at the last look, and are brought up to date.
pub(super) fn bound(directory: &Path, rank: usize, stream_max_bytes: u64, seen: &mut [u64; 2]) -> Look {
    let mut look = Look::default();
    for (stream, seen) in STREAMS.into_iter().zip(seen) {
        let file = path(directory, rank, stream);
        let Ok(size) = std::fs::metadata(&file).map(|found| found.len()) else { continue };
        look.fast |= size.saturating_sub(*seen) > stream_max_bytes / 8;
        if size < *seen {
            // The task emptied it: what is written now has nothing to do with what was dropped.
            let _ = std::fs::remove_file(note_of(&file));
        }
        if size > stream_max_bytes && size != *seen {
            look.unbounded |= drop_middle(&file, size, stream_max_bytes).is_err();
        }
        *seen = size;
    }
    look
}

fn drop_middle(file: &Path, size: u64, stream_max_bytes: u64) -> io::Result<()> {
    let from = stream_max_bytes / 2;
    let to = size - stream_max_bytes / 2;
    saved::write(&note_of(file), &Dropped { from, to })?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let file = OpenOptions::new().write(true).open(file)?;
    Ok(fallocate(&file, punch, from, to - from)?)
}

fn note_of(file: &Path) -> PathBuf {
    file.with_added_extension("dropped")
}
