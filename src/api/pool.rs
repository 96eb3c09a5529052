//! PoolService: lists, watches, cordons and drains pools, and plans their defragmentation.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::connection::identity_of;
use super::mutation::Mutations;
use super::page::{page_size, page_token};
use super::proto::v1;
use super::response_stream::{ResponseStream, spawn_response};
use super::watch::{PoolWatch, watch};
use super::{convert, error};
use crate::broker::query::{
    GetInventory, GetNode, GetPool, GetPoolInFull, ListMovable, ListNodes, ListPools, NodePage, NodeView,
    PoolView, defrag,
};
use crate::model::id::{AttemptId, NodeId, Revision};
use crate::model::limit::{DEFRAG_MOVES_DEFAULT, DEFRAG_MOVES_MAX, DEFRAG_NODES_MAX, LABELS_MAX};
use crate::model::pool::DrainMode;
use crate::model::validate::quote;
use crate::runtime::handle::Handle;
use crate::state::command::Command;

/// Implements PoolService.
#[derive(Clone)]
pub struct Pools {
    pub broker: Handle,
    pub(super) mutations: Mutations,
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
        let (revision, pools) = self.broker.query(ListPools).await?;
        let pools = pools.iter().map(convert::pool_message).collect();
        Ok(Response::new(v1::ListPoolsResponse { pools, revision: revision.0 }))
    }

    async fn get_pool(
        &self,
        request: Request<v1::GetPoolRequest>,
    ) -> Result<Response<v1::GetPoolResponse>, Status> {
        let name = request.into_inner().name;
        let (_, in_full) = self.broker.query(GetPoolInFull(name.clone())).await?;
        let Some(in_full) = in_full else { return Err(error::not_found("pool", &name)) };
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
        let identity = identity_of(&request);
        let from = Revision(request.into_inner().from_revision);
        let broker = self.broker.clone();
        Ok(Response::new(spawn_response(&identity, |sender| async move {
            watch(&broker, &PoolWatch(broker.clone()), from, &sender).await
        })))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let message = request.into_inner();
        let pool = self.find(&message.pool).await?.pool;
        let after = NodeId(page_token(&message.page_token)?.unwrap_or(0));
        let limit = page_size(message.page_size)?;
        let query = ListNodes { pool: pool.spec.name.clone(), after, limit };
        let (revision, NodePage { nodes, next }) = self.broker.query(query).await?;
        Ok(Response::new(v1::ListNodesResponse {
            nodes: nodes.iter().map(|node| convert::node_message(&pool, node)).collect(),
            next_page_token: next.map(|id| id.to_string()).unwrap_or_default(),
            revision: revision.0,
        }))
    }

    async fn get_node(
        &self,
        request: Request<v1::GetNodeRequest>,
    ) -> Result<Response<v1::GetNodeResponse>, Status> {
        let message = request.into_inner();
        let pool = self.find(&message.pool).await?.pool;
        let (revision, node) = self.find_node(&message.pool, &message.name).await?;
        let node = Some(convert::node_message(&pool, &node));
        Ok(Response::new(v1::GetNodeResponse { node, revision: revision.0 }))
    }

    async fn cordon(
        &self,
        request: Request<v1::CordonRequest>,
    ) -> Result<Response<v1::CordonResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let command = self.cordon_command(&message.pool, &message.node, true).await?;
        let revision = self.mutations.apply(&identity, &message, command).await?;
        Ok(Response::new(v1::CordonResponse { revision: revision.0 }))
    }

    async fn uncordon(
        &self,
        request: Request<v1::UncordonRequest>,
    ) -> Result<Response<v1::UncordonResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let command = self.cordon_command(&message.pool, &message.node, false).await?;
        let revision = self.mutations.apply(&identity, &message, command).await?;
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
        let revision = self.mutations.apply(&identity, &message, command).await?;
        Ok(Response::new(v1::DrainResponse { revision: revision.0 }))
    }

    async fn delete_pool(
        &self,
        request: Request<v1::DeletePoolRequest>,
    ) -> Result<Response<v1::DeletePoolResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let (name, based_on) = (message.name.clone(), Revision(message.revision));
        let command = Command::DeletePool { name, based_on };
        let revision = self.mutations.apply(&identity, &message, command).await?;
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
        Ok(Response::new(planned.await.map_err(|_| error::internal("the planning task panicked"))?))
    }

    async fn abandon(
        &self,
        request: Request<v1::AbandonRequest>,
    ) -> Result<Response<v1::AbandonResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let attempt: AttemptId = convert::parse("attempt", &message.attempt).map_err(error::invalid)?;
        let revision = self.mutations.apply(&identity, &message, Command::Abandon { attempt }).await?;
        Ok(Response::new(v1::AbandonResponse { revision: revision.0 }))
    }
}

impl Pools {
    async fn find(&self, name: &str) -> Result<PoolView, Status> {
        let (_, pool) = self.broker.query(GetPool(name.to_owned())).await?;
        pool.map(|pool| *pool).ok_or_else(|| error::not_found("pool", name))
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
        let (revision, found) = self.broker.query(GetInventory(pool.clone())).await?;
        let Some(mut found) = found else { return Err(error::not_found("pool", &pool)) };
        let mut page = defrag::Page { after: None, until: revision };
        loop {
            let query = ListMovable { pool: pool.clone(), movable: movable.clone(), page };
            let (_, tasks) = self.broker.query(query).await?;
            let Some(tasks) = tasks else { return Err(error::not_found("pool", &pool)) };
            page.after = tasks.next;
            found.add(tasks);
            if page.after.is_none() {
                return Ok((revision, *found));
            }
        }
    }

    async fn find_node(&self, pool: &str, name: &str) -> Result<(Revision, NodeView), Status> {
        let query = GetNode { pool: pool.to_owned(), name: name.to_owned() };
        let (revision, node) = self.broker.query(query).await?;
        let node = node.ok_or_else(|| error::not_found("node", name))?;
        Ok((revision, *node))
    }

    /// Cordons or uncordons a node, or the whole pool if `node` is empty.
    async fn cordon_command(&self, pool: &str, node: &str, cordoned: bool) -> Result<Command, Status> {
        let id = self.find(pool).await?.pool.id;
        Ok(match node {
            "" => Command::CordonPool { pool: id, cordoned },
            node => {
                let (_, node) = self.find_node(pool, node).await?;
                Command::CordonNode { pool: id, node: node.id, cordoned }
            }
        })
    }
}
