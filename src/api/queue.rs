//! QueueService: creates, updates, deletes, lists and watches queues.

use tonic::{Request, Response, Status};

use super::connection::identity_of;
use super::mutation::Mutations;
use super::proto::v1;
use super::response_stream::{ResponseStream, spawn_response};
use super::watch::{QueueWatch, watch};
use super::{convert, error};
use crate::broker::query::{GetQueue, ListQueues};
use crate::model::id::Revision;
use crate::runtime::handle::Handle;
use crate::state::command::Command;

/// Implements QueueService.
pub struct Queues {
    pub broker: Handle,
    pub(super) mutations: Mutations,
}

#[tonic::async_trait]
impl v1::queue_service_server::QueueService for Queues {
    async fn create_queue(
        &self,
        request: Request<v1::CreateQueueRequest>,
    ) -> Result<Response<v1::CreateQueueResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let spec = convert::queue_spec(message.queue.as_ref()).map_err(error::invalid)?;
        let command = Command::CreateQueue { spec };
        let revision = self.mutations.apply(&identity, &message, command).await?;
        Ok(Response::new(v1::CreateQueueResponse { revision: revision.0 }))
    }

    async fn update_queue(
        &self,
        request: Request<v1::UpdateQueueRequest>,
    ) -> Result<Response<v1::UpdateQueueResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let spec = convert::queue_spec(message.queue.as_ref()).map_err(error::invalid)?;
        let based_on = Revision(message.queue.as_ref().map_or(0, |queue| queue.revision));
        let command = Command::UpdateQueue { spec, based_on };
        let revision = self.mutations.apply(&identity, &message, command).await?;
        Ok(Response::new(v1::UpdateQueueResponse { revision: revision.0 }))
    }

    async fn delete_queue(
        &self,
        request: Request<v1::DeleteQueueRequest>,
    ) -> Result<Response<v1::DeleteQueueResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let command =
            Command::DeleteQueue { name: message.name.clone(), based_on: Revision(message.revision) };
        let revision = self.mutations.apply(&identity, &message, command).await?;
        Ok(Response::new(v1::DeleteQueueResponse { revision: revision.0 }))
    }

    async fn list_queues(
        &self,
        _: Request<v1::ListQueuesRequest>,
    ) -> Result<Response<v1::ListQueuesResponse>, Status> {
        let (revision, queues) = self.broker.query(ListQueues).await?;
        let queues = queues.iter().map(convert::queue_message).collect();
        Ok(Response::new(v1::ListQueuesResponse { queues, revision: revision.0 }))
    }

    async fn get_queue(
        &self,
        request: Request<v1::GetQueueRequest>,
    ) -> Result<Response<v1::GetQueueResponse>, Status> {
        let name = request.into_inner().name;
        let (revision, queue) = self.broker.query(GetQueue(name.clone())).await?;
        let queue = queue.ok_or_else(|| error::not_found("queue", &name))?;
        let queue = Some(convert::queue_message(&queue));
        Ok(Response::new(v1::GetQueueResponse { queue, revision: revision.0 }))
    }

    type WatchQueuesStream = ResponseStream<v1::WatchQueuesResponse>;

    async fn watch_queues(
        &self,
        request: Request<v1::WatchQueuesRequest>,
    ) -> Result<Response<Self::WatchQueuesStream>, Status> {
        let identity = identity_of(&request);
        let from = Revision(request.into_inner().from_revision);
        let broker = self.broker.clone();
        Ok(Response::new(spawn_response(&identity, |sender| async move {
            watch(&broker, &QueueWatch(broker.clone()), from, &sender).await
        })))
    }
}
