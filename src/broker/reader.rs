//! A recovered state that is read while its journal can't be written: it answers queries and changes nothing.

use super::{AnyAnswer, AnyQuery, Broker};
use crate::model::id::Revision;
use crate::model::plan::Policy;
use crate::model::time::Timestamp;
use crate::state::State;

/// Answers queries from a durable state.
pub struct Reader {
    broker: Broker,
}

impl Reader {
    /// Reads a state that was recovered from a journal.
    pub fn new(state: State, policy: Policy, now: Timestamp) -> Self {
        let term = state.term();
        let mut broker = Broker::recovered(state, term, 0, now);
        broker.set_policy(policy);
        Self { broker }
    }

    /// Answers a query, with the revision of the answer.
    pub fn query(&mut self, now: Timestamp, query: Box<dyn AnyQuery>) -> (Revision, AnyAnswer) {
        self.broker.now = self.broker.now.max(now);
        (self.broker.state.revision(), query.answer_any(&self.broker))
    }

    /// Ends reading and returns the state, for the broker that can write again.
    pub fn into_state(self) -> State {
        self.broker.state
    }
}
