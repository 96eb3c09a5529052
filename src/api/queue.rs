//! QueueService: creates, updates and lists queues.

use tonic::{Request, Response, Status};

use super::connection::identity_of;
use super::mutation::Mutations;
use super::proto::v1;
use super::{convert, error};
use crate::broker::query::ListQueues;
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
}
