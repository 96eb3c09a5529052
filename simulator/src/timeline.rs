//! Queue of future events, ordered by virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Future events by time; events of the same time leave in the order in which they were added.
pub(crate) struct Timeline<E> {
    /// Events added so far: breaks ties.
    added: u64,
    heap: BinaryHeap<Reverse<Due<E>>>,
}

/// Time, sequence number and event. The event is boxed, since a heap moves its items.
struct Due<E>(u64, u64, Box<E>);

impl<E> Timeline<E> {
    /// Adds an event at a time, in virtual milliseconds since the start.
    pub(crate) fn put(&mut self, at: u64, event: E) {
        self.added += 1;
        self.heap.push(Reverse(Due(at, self.added, Box::new(event))));
    }

    /// Removes the next event and returns it with its time.
    pub(crate) fn next(&mut self) -> Option<(u64, E)> {
        self.heap.pop().map(|Reverse(Due(at, _, event))| (at, *event))
    }
}

impl<E> Default for Timeline<E> {
    fn default() -> Self {
        Self { added: 0, heap: BinaryHeap::new() }
    }
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl<E> Eq for Due<E> {}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Due<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}
