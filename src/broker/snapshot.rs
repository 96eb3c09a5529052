//! When snapshots are taken, and their chunks on the way to the journal.

use super::{Broker, Effect};

/// Where the snapshot under way stands.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) events_since: u64,
    pub(super) chunk_in_flight: bool,
    next_index: u32,
}

/// Events after which a snapshot begins, at the least: a replay of so many takes a second.
const EVENTS_MIN: u64 = 200_000;

impl Broker {
    /// Hands the next chunk to the journal unless it is still writing one.
    pub(super) fn write_next_chunk(&mut self) {
        if self.snapshot.chunk_in_flight {
            return;
        }
        if !self.state.is_snapshotting() {
            // As many events as there are jobs: writing snapshots stays a part of all writing.
            let due = self.snapshot.events_since >= EVENTS_MIN.max(self.state.job_count() as u64);
            if !due {
                return;
            }
            self.begin_snapshot();
        }
        let Some((revision, objects, last)) = self.state.next_chunk() else { return };
        let index = self.snapshot.next_index;
        self.snapshot.next_index += 1;
        self.snapshot.chunk_in_flight = true;
        let effect = Effect::WriteChunk { revision, index, last, objects };
        // A chunk shows `revision`: it must not get to the disk before that revision does.
        if revision <= self.durability.durable {
            self.out.push(effect)
        } else {
            self.hold_until_durable(effect)
        }
    }

    /// Begins a snapshot now, whatever has been written since the last.
    pub fn begin_snapshot(&mut self) {
        self.state.begin_snapshot();
        self.snapshot.events_since = 0;
        self.snapshot.next_index = 0;
    }
}
