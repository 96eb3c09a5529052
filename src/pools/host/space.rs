//! Free space where a pool's state and output are stored. A full disk is the node's fault, no failure of its jobs.

use std::path::Path;

/// Free space below which the pool takes no new work: enough for the start of many tasks and their first output.
const LOW_BYTES: u64 = 64 << 20;
/// The same as a part of a small file system.
const LOW_PART: u64 = 20;
/// Free space below which a write of a task's output has probably failed.
const EXHAUSTED_BYTES: u64 = 256 << 10;

/// The space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) free_bytes: u64,
    pub(super) total_bytes: u64,
}

impl Space {
    /// Reads the space of the file system that `folder` is on; `None` if the system doesn't report it.
    pub(super) fn of(folder: &Path) -> Option<Self> {
        let stat = rustix::fs::statvfs(folder).ok()?;
        // Some network file systems report no sizes.
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        (stat.f_blocks > 0)
            .then(|| Self { free_bytes: bytes(stat.f_bavail), total_bytes: bytes(stat.f_blocks) })
    }

    /// Returns whether new work would soon meet a full disk.
    pub(super) fn is_low(self) -> bool {
        self.free_bytes < LOW_BYTES.min(self.total_bytes / LOW_PART)
    }

    /// Returns whether writes probably fail.
    pub(super) fn is_exhausted(self) -> bool {
        self.free_bytes < EXHAUSTED_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::Space;

    #[test]
    fn space_is_low_by_bytes_on_large_disks_and_by_part_on_small_ones() {
        let is_low = |free_bytes, total_bytes| Space { free_bytes, total_bytes }.is_low();
        assert!(is_low(63 << 20, 1 << 40));
        assert!(!is_low(65 << 20, 1 << 40));
        assert!(is_low(1 << 20, 64 << 20));
        assert!(!is_low(4 << 20, 64 << 20));
    }
}
