//! Mutations: a request that changes something is admitted, then decided under its token.

use prost::Message;
use tonic::Status;

use super::admission::{AdmissionQueue, Identity};
use super::proto::v1;
use super::{convert, error};
use crate::model::id::Revision;
use crate::model::limit::TOKEN_LEN_MAX;
use crate::runtime::error::CallError;
use crate::runtime::handle::Handle;
use crate::state::command::{Command, Request};
use crate::state::decide::Reply;
use crate::state::token::RequestToken;

/// The request of a method that changes something.
pub(super) trait Mutation: Message + Clone {
    /// The method's name.
    const METHOD: &'static str;

    /// What makes the request repeatable; empty if the client sent none.
    fn token(&self) -> &str;

    /// Distinguishes the request from others with the same token.
    fn fingerprint(&self) -> Vec<u8>;
}

macro_rules! mutation {
    ($($request:ident $method:literal),* $(,)?) => {$(
        impl Mutation for v1::$request {
            const METHOD: &'static str = $method;

            fn token(&self) -> &str {
                &self.token
            }

            fn fingerprint(&self) -> Vec<u8> {
                Self { token: String::new(), ..self.clone() }.encode_to_vec()
            }
        }
    )*};
}
mutation!(
    SubmitRequest "Submit", RerunRequest "Rerun", CancelRequest "Cancel",
    UpdateJobRequest "UpdateJob",
    CordonRequest "Cordon", UncordonRequest "Uncordon", DrainRequest "Drain", AbandonRequest "Abandon",
    DeletePoolRequest "DeletePool",
    CreateQueueRequest "CreateQueue", UpdateQueueRequest "UpdateQueue", DeleteQueueRequest "DeleteQueue",
);

/// Has the broker decide mutations.
#[derive(Clone)]
pub(super) struct Mutations {
    pub broker: Handle,
    pub admission: AdmissionQueue,
}

impl Mutations {
    /// Waits for admission, then has the broker decide `command`, which is about so many `jobs`.
    ///
    /// # Errors
    /// The outer error if it did not reach the broker: an invalid token, or the client's limits. The inner
    /// one is the broker's.
    pub(super) async fn decide<M: Mutation>(
        &self,
        identity: &Identity,
        message: &M,
        jobs: usize,
        command: Command,
    ) -> Result<Result<(Reply, Revision), CallError>, Status> {
        let token = message.token();
        if token.len() > TOKEN_LEN_MAX {
            let description = format!("{} bytes, at most {TOKEN_LEN_MAX} are allowed", token.len());
            return Err(error::invalid(convert::invalid("token", description)));
        }
        let principal = identity.principal().clone();
        let token = (!token.is_empty())
            .then(|| RequestToken::new(&principal, M::METHOD, token, &message.fingerprint()));
        let _permit = self.admission.acquire(identity, jobs).await?;
        Ok(self.broker.request(Request { principal, token, command }).await)
    }

    /// The same, for a command that is about no job in particular. Returns a revision that includes what it changed.
    pub(super) async fn apply<M: Mutation>(
        &self,
        identity: &Identity,
        message: &M,
        command: Command,
    ) -> Result<Revision, Status> {
        let (_, revision) = self.decide(identity, message, 0, command).await??;
        Ok(revision)
    }
}
