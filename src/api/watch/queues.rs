//! Watches of queues.

use tonic::Status;

use super::whole::Few;
use crate::api::convert;
use crate::api::proto::v1;
use crate::broker::query::{ListQueues, QueueView};
use crate::model::change::Change;
use crate::model::id::{QueueId, Revision};
use crate::runtime::handle::Handle;

/// Watches all queues.
pub(in crate::api) struct QueueWatch(pub(in crate::api) Handle);

impl Few for QueueWatch {
    type Id = QueueId;
    type Object = QueueView;
    type Message = v1::WatchQueuesResponse;

    async fn all(&self) -> Result<(Revision, Vec<QueueView>), Status> {
        Ok(self.0.query(ListQueues).await?)
    }

    fn changed_id(change: Change) -> Option<QueueId> {
        match change {
            Change::Queue(id) => Some(id),
            _ => None,
        }
    }

    fn id(view: &QueueView) -> QueueId {
        view.queue.id
    }

    fn message(queues: &[&QueueView], revision: Revision, relisted: bool) -> v1::WatchQueuesResponse {
        let queues = queues.iter().map(|queue| convert::queue_message(queue)).collect();
        v1::WatchQueuesResponse { queues, revision: revision.0, relisted }
    }
}
