//! QueueService: creates, updates and lists queues.

use prost::Message;
use tonic::{Request, Response, Status};

use super::admission::AdmissionQueue;
use super::connection::identity_of;
use super::proto::v1;
use super::{Mutation, convert, error, mutate};
use crate::broker::{Answer, Query};
use crate::model::id::Revision;
use crate::runtime::handle::Handle;
use crate::state::command::Command;

/// Implements QueueService.
pub struct Queues {
    pub broker: Handle,
    pub(super) admission: AdmissionQueue,
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
        let fingerprint = v1::CreateQueueRequest { token: String::new(), ..message.clone() }.encode_to_vec();
        let mutation = Mutation {
            identity: &identity,
            method: "CreateQueue",
            token: &message.token,
            fingerprint: &fingerprint,
            jobs: 0,
            command: Command::CreateQueue { spec },
        };
        let decided = mutate(&self.broker, &self.admission, mutation).await?;
        let (_, revision) = decided.map_err(error::call)?;
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
        let fingerprint = v1::UpdateQueueRequest { token: String::new(), ..message.clone() }.encode_to_vec();
        let mutation = Mutation {
            identity: &identity,
            method: "UpdateQueue",
            token: &message.token,
            fingerprint: &fingerprint,
            jobs: 0,
            command: Command::UpdateQueue { spec, based_on },
        };
        let decided = mutate(&self.broker, &self.admission, mutation).await?;
        let (_, revision) = decided.map_err(error::call)?;
        Ok(Response::new(v1::UpdateQueueResponse { revision: revision.0 }))
    }

    async fn delete_queue(
        &self,
        request: Request<v1::DeleteQueueRequest>,
    ) -> Result<Response<v1::DeleteQueueResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let fingerprint = v1::DeleteQueueRequest { token: String::new(), ..message.clone() }.encode_to_vec();
        let mutation = Mutation {
            identity: &identity,
            method: "DeleteQueue",
            token: &message.token,
            fingerprint: &fingerprint,
            jobs: 0,
            command: Command::DeleteQueue { name: message.name, based_on: Revision(message.revision) },
        };
        let decided = mutate(&self.broker, &self.admission, mutation).await?;
        let (_, revision) = decided.map_err(error::call)?;
        Ok(Response::new(v1::DeleteQueueResponse { revision: revision.0 }))
    }

    async fn list_queues(
        &self,
        _: Request<v1::ListQueuesRequest>,
    ) -> Result<Response<v1::ListQueuesResponse>, Status> {
        let (revision, answer) = self.broker.query(Query::Queues).await.map_err(error::call)?;
        let Answer::Queues(queues) = answer else {
            return Err(Status::internal("unexpected answer to a query of queues"));
        };
        let queues = queues.iter().map(convert::queue_message).collect();
        Ok(Response::new(v1::ListQueuesResponse { queues, revision: revision.0 }))
    }
}
