//! Watches of queues.

use std::collections::BTreeSet;

use tonic::Status;

use super::Watched;
use crate::api::convert;
use crate::api::proto::v1;
use crate::api::response_stream::{MessagePermit, ResponseSender};
use crate::broker::query::{ListQueues, QueueView};
use crate::model::change::Change;
use crate::model::id::{QueueId, Revision};
use crate::runtime::handle::Handle;

/// Watches all queues.
pub(in crate::api) struct QueueWatch(pub(in crate::api) Handle);

impl Watched for QueueWatch {
    type Message = v1::WatchQueuesResponse;

    async fn list(&self, _: Revision, sender: &ResponseSender<Self::Message>) -> Result<Revision, Status> {
        let permit = sender.reserve().await?;
        let (revision, queues) = self.0.query(ListQueues).await?;
        send(queues.iter(), revision, true, permit, sender).await?;
        Ok(revision)
    }

    async fn changed(
        &self,
        changes: BTreeSet<Change>,
        _: Revision,
        through: Revision,
        sender: &ResponseSender<Self::Message>,
    ) -> Result<Revision, Status> {
        let changed = changes.into_iter().filter_map(|change| match change {
            Change::Queue(id) => Some(id),
            _ => None,
        });
        let changed: BTreeSet<QueueId> = changed.collect();
        if changed.is_empty() {
            return Ok(through);
        }
        let permit = sender.reserve().await?;
        let (revision, queues) = self.0.query(ListQueues).await?;
        if !changed.iter().all(|id| queues.iter().any(|queue| queue.queue.id == *id)) {
            // What was deleted can only be left out of a new list.
            send(queues.iter(), revision, true, permit, sender).await?;
            return Ok(revision);
        }
        let changed = queues.iter().filter(|queue| changed.contains(&queue.queue.id));
        send(changed, revision, false, permit, sender).await?;
        Ok(through)
    }
}

async fn send(
    queues: impl Iterator<Item = &QueueView>,
    revision: Revision,
    relisted: bool,
    permit: MessagePermit,
    sender: &ResponseSender<v1::WatchQueuesResponse>,
) -> Result<(), Status> {
    let queues = queues.map(convert::queue_message).collect();
    sender.send(permit, v1::WatchQueuesResponse { queues, revision: revision.0, relisted }).await
}
