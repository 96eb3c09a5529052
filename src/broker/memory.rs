//! Refuses what would take more memory than the broker may use. It goes on serving what it has.

use super::Broker;
use crate::model::limit::POOL_BYTES_MAX;
use crate::state::command::Command;
use crate::state::event::Event;
use crate::state::rejection::Rejection;

/// Part of the budget that jobs can't take: pools that run them must still be able to register.
const FOR_POOLS_PART: u64 = 8;

impl Broker {
    /// Lets jobs, pools and nodes take at most so many bytes of memory, by the state's estimate.
    pub fn set_memory_max(&mut self, bytes: u64) {
        self.memory_max = bytes;
    }

    /// Checks that what a command adds stays within the memory budget. What takes memory already is served, even if
    /// a smaller budget was set since.
    pub(super) fn check_memory(&self, command: &Command, events: &[Event]) -> Result<(), Rejection> {
        let growth = self.state.growth_bytes(events);
        if growth == 0 {
            return Ok(());
        }
        let max = match matches!(command, Command::Submit { .. } | Command::UpdateJob { .. }) {
            true => self.memory_max - self.memory_max / FOR_POOLS_PART,
            false => self.memory_max,
        };
        let what = "bytes of live jobs, pools and nodes (see `weir server --memory-max`)";
        if self.state.memory_bytes().saturating_add(growth) > max {
            return Err(Rejection::LimitReached { what, max: max as usize });
        }
        let of_pool = events
            .iter()
            .find_map(|event| if let Event::NodeReported { pool, .. } = event { Some(*pool) } else { None });
        match of_pool {
            Some(pool) if self.state.pool_memory_bytes(pool).saturating_add(growth) > POOL_BYTES_MAX => {
                Err(Rejection::LimitReached {
                    what: "bytes of one pool and its nodes",
                    max: POOL_BYTES_MAX as usize,
                })
            }
            Some(_) | None => Ok(()),
        }
    }
}
