//! PoolService: lists, watches, cordons and drains pools, and plans their defragmentation.

use std::sync::Arc;

use prost::Message;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::admission::{AdmissionQueue, Identity};
use super::connection::identity_of;
use super::job::REOPEN_WAIT;
use super::page::{page_size, page_token};
use super::proto::v1;
use super::response_stream::{ResponseSender, ResponseStream, response_stream};
use super::watch::resume_revision;
use super::{Mutation, convert, error, mutate};
use crate::broker::{Answer, NodeView, PoolView, Query, defrag};
use crate::model::change::Change;
use crate::model::id::{AttemptId, NodeId, PoolId, Revision};
use crate::model::limit::{DEFRAG_MOVES_DEFAULT, DEFRAG_MOVES_MAX, DEFRAG_NODES_MAX, LABELS_MAX, PAGE_MAX};
use crate::model::pool::DrainMode;
use crate::model::validate::quote;
use crate::runtime::handle::Handle;
use crate::runtime::watch::Missed;
use crate::state::command::Command;

/// Implements PoolService.
#[derive(Clone)]
pub struct Pools {
    pub broker: Handle,
    pub(super) admission: AdmissionQueue,
    /// Admits one plan at a time: each uses a whole core.
    pub(super) planning: Arc<Semaphore>,
}

/// Sets of tasks compared for one plan, which takes about a second.
const PLAN_LOOKS_MAX: u64 = 30_000_000;

#[tonic::async_trait]
impl v1::pool_service_server::PoolService for Pools {
    async fn list_pools(
        &self,
        _: Request<v1::ListPoolsRequest>,
    ) -> Result<Response<v1::ListPoolsResponse>, Status> {
        let (revision, pools) = self.all().await?;
        let pools = pools.iter().map(convert::pool_message).collect();
        Ok(Response::new(v1::ListPoolsResponse { pools, revision: revision.0 }))
    }

    async fn get_pool(
        &self,
        request: Request<v1::GetPoolRequest>,
    ) -> Result<Response<v1::GetPoolResponse>, Status> {
        let name = request.into_inner().name;
        let (_, answer) = self.broker.query(Query::PoolInFull(name.clone())).await.map_err(error::call)?;
        let Answer::PoolInFull(Some(in_full)) = answer else { return Err(error::not_found("pool", &name)) };
        let (pool, blocks) = *in_full;
        Ok(Response::new(v1::GetPoolResponse {
            pool: Some(convert::pool_message(&pool)),
            free_blocks: blocks.into_iter().map(convert::free_block_message).collect(),
        }))
    }

    type WatchPoolsStream = ResponseStream<v1::WatchPoolsResponse>;

    async fn watch_pools(
        &self,
        request: Request<v1::WatchPoolsRequest>,
    ) -> Result<Response<Self::WatchPoolsStream>, Status> {
        let (sender, stream) = response_stream(&identity_of(&request));
        let from = Revision(request.into_inner().from_revision);
        let pools = self.clone();
        tokio::spawn(async move { pools.watch(from, sender).await });
        Ok(Response::new(stream))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let message = request.into_inner();
        let pool = self.find(&message.pool).await?.pool;
        let after = NodeId(page_token(&message.page_token)?.unwrap_or(0));
        let limit = page_size(message.page_size)?;
        let query = Query::Nodes { pool: pool.spec.name.clone(), after, limit };
        let (revision, answer) = self.broker.query(query).await.map_err(error::call)?;
        let Answer::Nodes { nodes, next } = answer else {
            return Err(Status::internal("unexpected answer to a query of nodes"));
        };
        Ok(Response::new(v1::ListNodesResponse {
            nodes: nodes.iter().map(|node| convert::node_message(&pool, node)).collect(),
            next_page_token: next.map(|id| id.to_string()).unwrap_or_default(),
            revision: revision.0,
        }))
    }

    async fn cordon(
        &self,
        request: Request<v1::CordonRequest>,
    ) -> Result<Response<v1::CordonResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let (pool, node) = (&message.pool, &message.node);
        let revision = self.set_cordoned(&identity, "Cordon", &message.token, pool, node, true).await?;
        Ok(Response::new(v1::CordonResponse { revision: revision.0 }))
    }

    async fn uncordon(
        &self,
        request: Request<v1::UncordonRequest>,
    ) -> Result<Response<v1::UncordonResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let (pool, node) = (&message.pool, &message.node);
        let revision = self.set_cordoned(&identity, "Uncordon", &message.token, pool, node, false).await?;
        Ok(Response::new(v1::UncordonResponse { revision: revision.0 }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let pool = self.find(&message.pool).await?.pool.id;
        let mode = match message.mode() {
            v1::DrainMode::Wait => DrainMode::Wait,
            v1::DrainMode::Evict => DrainMode::Evict,
            v1::DrainMode::Unspecified => {
                let description = format!("{} is not a drain mode: use WAIT or EVICT", message.mode);
                return Err(error::invalid(convert::invalid("mode", description)));
            }
        };
        let command = Command::DrainPool { pool, mode, deadline_ms: message.deadline_ms };
        let fingerprint = v1::DrainRequest { token: String::new(), ..message.clone() }.encode_to_vec();
        let revision = self.change(&identity, "Drain", &message.token, &fingerprint, command).await?;
        Ok(Response::new(v1::DrainResponse { revision: revision.0 }))
    }

    async fn delete_pool(
        &self,
        request: Request<v1::DeletePoolRequest>,
    ) -> Result<Response<v1::DeletePoolResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let fingerprint = v1::DeletePoolRequest { token: String::new(), ..message.clone() }.encode_to_vec();
        let command = Command::DeletePool { name: message.name, based_on: Revision(message.revision) };
        let revision = self.change(&identity, "DeletePool", &message.token, &fingerprint, command).await?;
        Ok(Response::new(v1::DeletePoolResponse { revision: revision.0 }))
    }

    async fn plan_defrag(
        &self,
        request: Request<v1::PlanDefragRequest>,
    ) -> Result<Response<v1::PlanDefragResponse>, Status> {
        let message = request.into_inner();
        let (pool, moves, movable) = self.defrag_request(message).await?;
        let permit = Arc::clone(&self.planning).acquire_owned().await;
        let permit = permit.map_err(|_| Status::unavailable("the broker is shutting down"))?;
        let (revision, found) = self.fragmented_pool(pool, movable).await?;
        let limits = defrag::Limits { moves, free_millis: 0, comparisons: PLAN_LOOKS_MAX };
        let planned = tokio::task::spawn_blocking(move || {
            let plan = found.pool.plan(limits);
            drop(permit);
            convert::defrag_message(&found, &plan, revision)
        });
        Ok(Response::new(planned.await.map_err(|_| Status::internal("the planning task panicked"))?))
    }

    async fn abandon(
        &self,
        request: Request<v1::AbandonRequest>,
    ) -> Result<Response<v1::AbandonResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let attempt: AttemptId = convert::parse("attempt", &message.attempt).map_err(error::invalid)?;
        let command = Command::Abandon { attempt };
        let fingerprint = message.attempt.as_bytes();
        let revision = self.change(&identity, "Abandon", &message.token, fingerprint, command).await?;
        Ok(Response::new(v1::AbandonResponse { revision: revision.0 }))
    }
}

impl Pools {
    async fn all(&self) -> Result<(Revision, Vec<PoolView>), Status> {
        let (revision, answer) = self.broker.query(Query::Pools).await.map_err(error::call)?;
        let Answer::Pools(pools) = answer else {
            return Err(Status::internal("unexpected answer to a query of pools"));
        };
        Ok((revision, pools))
    }

    async fn find(&self, name: &str) -> Result<PoolView, Status> {
        let (_, answer) = self.broker.query(Query::Pool(name.to_owned())).await.map_err(error::call)?;
        match answer {
            Answer::Pool(Some(pool)) => Ok(*pool),
            _ => Err(error::not_found("pool", name)),
        }
    }

    /// Validates a request: the pool's name, the largest number of moves, and the tasks that may move.
    async fn defrag_request(
        &self,
        message: v1::PlanDefragRequest,
    ) -> Result<(String, usize, defrag::Movable), Status> {
        let moves = match message.moves_max {
            0 => DEFRAG_MOVES_DEFAULT,
            moves if moves <= DEFRAG_MOVES_MAX => moves,
            moves => {
                let description = format!("{moves} is not within 0 and {DEFRAG_MOVES_MAX}");
                return Err(error::invalid(convert::invalid("moves_max", description)));
            }
        };
        for (field, labels) in
            [("preemptible", &message.preemptible), ("checkpointed", &message.checkpointed)]
        {
            if labels.len() > LABELS_MAX {
                let description = format!("{} labels, at most {LABELS_MAX} are allowed", labels.len());
                return Err(error::invalid(convert::invalid(field, description)));
            }
        }
        let found = self.find(&message.pool).await?;
        if found.nodes > DEFRAG_NODES_MAX {
            let description = format!(
                "pool {} has {} nodes, plans are limited to pools of {DEFRAG_NODES_MAX}",
                quote(&message.pool),
                found.nodes
            );
            return Err(Status::failed_precondition(description));
        }
        let movable =
            defrag::Movable { preemptible: message.preemptible, checkpointed: message.checkpointed };
        Ok((found.pool.spec.name, moves as usize, movable))
    }

    /// The input of a plan for a pool, with the revision at which its nodes were read.
    async fn fragmented_pool(
        &self,
        pool: String,
        movable: defrag::Movable,
    ) -> Result<(Revision, defrag::Inventory), Status> {
        let (revision, answer) =
            self.broker.query(Query::FragmentedPool(pool.clone())).await.map_err(error::call)?;
        let Answer::FragmentedPool(Some(mut found)) = answer else {
            return Err(error::not_found("pool", &pool));
        };
        let mut page = defrag::Page { after: None, until: revision };
        loop {
            let query = Query::Movable { pool: pool.clone(), movable: movable.clone(), page };
            let (_, answer) = self.broker.query(query).await.map_err(error::call)?;
            let Answer::Movable(Some(tasks)) = answer else { return Err(error::not_found("pool", &pool)) };
            page.after = tasks.next;
            found.add(tasks);
            if page.after.is_none() {
                return Ok((revision, *found));
            }
        }
    }

    async fn find_node(&self, pool: &str, name: &str) -> Result<NodeId, Status> {
        let mut after = NodeId(0);
        loop {
            let query = Query::Nodes { pool: pool.to_owned(), after, limit: PAGE_MAX };
            let (_, answer) = self.broker.query(query).await.map_err(error::call)?;
            let Answer::Nodes { nodes, next } = answer else {
                return Err(Status::internal("unexpected answer to a query of nodes"));
            };
            let found = nodes.iter().find(|node: &&NodeView| node.node.spec.name == name);
            match (found, next) {
                (Some(node), _) => return Ok(node.id),
                (None, Some(next)) => after = next,
                (None, None) => return Err(error::not_found("node", name)),
            }
        }
    }

    async fn change(
        &self,
        identity: &Identity,
        method: &'static str,
        token: &str,
        fingerprint: &[u8],
        command: Command,
    ) -> Result<Revision, Status> {
        let mutation = Mutation { identity, method, token, fingerprint, jobs: 0, command };
        let decided = mutate(&self.broker, &self.admission, mutation).await?;
        Ok(decided.map_err(error::call)?.1)
    }

    async fn set_cordoned(
        &self,
        identity: &Identity,
        method: &'static str,
        token: &str,
        pool: &str,
        node: &str,
        cordoned: bool,
    ) -> Result<Revision, Status> {
        let id = self.find(pool).await?.pool.id;
        let command = if node.is_empty() {
            Command::CordonPool { pool: id, cordoned }
        } else {
            Command::CordonNode { pool: id, node: self.find_node(pool, node).await?, cordoned }
        };
        self.change(identity, method, token, format!("{pool}/{node}").as_bytes(), command).await
    }

    /// Sends the pools that changed since `from`, then further changes until the client closes the stream.
    /// Starts with a list of all pools if `from` is 0 or too old.
    async fn watch(&self, from: Revision, sender: ResponseSender<v1::WatchPoolsResponse>) {
        let mut reached = match resume_revision(&self.broker, from).await {
            Ok(reached) => reached,
            Err(status) => return sender.fail(status).await,
        };
        loop {
            let watchers = self.broker.watchers();
            let mut updates = watchers.subscribe();
            let through = *updates.borrow_and_update();
            let missed = if reached == Revision(0) { Missed::Unknown } else { watchers.since(reached) };
            let Ok(permit) = sender.reserve().await else { return };
            let (revision, pools) = match self.all().await {
                Ok(all) => all,
                Err(status) => return sender.fail(status).await,
            };
            let listed = |id: &PoolId| pools.iter().any(|pool| pool.pool.id == *id);
            let changes = match &missed {
                Missed::Unknown => None,
                // What was deleted can only be left out of a new list.
                Missed::Changes(changes) => Some(changes).filter(|changes| {
                    changes.iter().all(|change| !matches!(change, Change::Pool(id) if !listed(id)))
                }),
            };
            let changed = |pool: &&PoolView| {
                changes.is_none_or(|changes| {
                    changes.contains(&Change::Pool(pool.pool.id))
                        || changes.iter().any(|c| matches!(c, Change::Node(at) if at.pool == pool.pool.id))
                })
            };
            let pools: Vec<v1::Pool> = pools.iter().filter(changed).map(convert::pool_message).collect();
            let relisted = changes.is_none();
            if (relisted || !pools.is_empty())
                && sender
                    .send(permit, v1::WatchPoolsResponse { pools, revision: revision.0, relisted })
                    .await
                    .is_err()
            {
                return;
            }
            reached = if relisted { revision } else { through.max(reached) };
            tokio::select! {
                changed = updates.changed() => if changed.is_err() {
                    // The broker is reopening its journal, after which it has new watchers.
                    tokio::time::sleep(REOPEN_WAIT).await;
                },
                () = sender.closed() => return,
            }
        }
    }
}
