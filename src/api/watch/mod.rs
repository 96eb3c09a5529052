//! Watches: a list, then the changes.

mod jobs;
mod pools;
mod queues;
mod whole;

use std::collections::BTreeSet;
use std::time::Duration;

use tonic::Status;

pub(super) use jobs::JobWatch;
pub(super) use pools::PoolWatch;
pub(super) use queues::QueueWatch;

use super::response_stream::ResponseSender;
use crate::broker::query::GetStatus;
use crate::model::change::Change;
use crate::model::id::Revision;
use crate::runtime::handle::Handle;
use crate::runtime::watch::Missed;

/// Wait while the broker reopens its journal.
pub(super) const REOPEN_WAIT: Duration = Duration::from_millis(500);

/// Objects of one kind, as a watch sends them.
pub(super) trait Watched: Send + Sync + 'static {
    type Message: Send;

    /// Sends all objects. Returns the revision at which the list is complete. The client has seen all changes up to
    /// `seen`, of which 0 means none.
    fn list(
        &self,
        seen: Revision,
        sender: &ResponseSender<Self::Message>,
    ) -> impl Future<Output = Result<Revision, Status>> + Send;

    /// Sends those that changed after `reached`, up to `through`. Returns the revision that is then reached.
    fn changed(
        &self,
        changes: BTreeSet<Change>,
        reached: Revision,
        through: Revision,
        sender: &ResponseSender<Self::Message>,
    ) -> impl Future<Output = Result<Revision, Status>> + Send;
}

/// Sends the changes since `from`, then further changes until the client closes the stream. Starts with a list if
/// `from` is 0 or too old.
pub(super) async fn watch<W: Watched>(
    broker: &Handle,
    watched: &W,
    from: Revision,
    sender: &ResponseSender<W::Message>,
) -> Result<(), Status> {
    let (revision, _) = broker.query(GetStatus).await?;
    // A revision in the future is of another journal: the changes since it are unknown.
    let mut reached = if from > revision { Revision(0) } else { from };
    loop {
        let watchers = broker.watchers();
        let mut updates = watchers.subscribe();
        let through = *updates.borrow_and_update();
        let missed = if reached == Revision(0) { Missed::Unknown } else { watchers.since(reached) };
        reached = match missed {
            Missed::Unknown => watched.list(reached, sender).await?,
            Missed::Changes(changes) if through > reached => {
                watched.changed(changes, reached, through, sender).await?
            }
            Missed::Changes(_) => reached,
        };
        tokio::select! {
            changed = updates.changed() => if changed.is_err() {
                // The broker is reopening its journal, after which it has new watchers.
                tokio::time::sleep(REOPEN_WAIT).await;
            },
            () = sender.closed() => return Ok(()),
        }
    }
}
