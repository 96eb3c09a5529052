//! What is to happen, in the order of virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events to come; of those at one time the one that was put first comes first.
pub(crate) struct Timeline<E> {
    put: u64,
    heap: BinaryHeap<Reverse<Due<E>>>,
}

/// An event with its place in time; boxed, since a heap moves what it holds.
struct Due<E>(u64, u64, Box<E>);

impl<E> Timeline<E> {
    /// Puts an event at a time, in milliseconds since the beginning.
    pub(crate) fn put(&mut self, at: u64, event: E) {
        self.put += 1;
        self.heap.push(Reverse(Due(at, self.put, Box::new(event))));
    }

    /// Takes the next event, with its time.
    pub(crate) fn next(&mut self) -> Option<(u64, E)> {
        self.heap.pop().map(|Reverse(Due(at, _, event))| (at, *event))
    }
}

impl<E> Default for Timeline<E> {
    fn default() -> Self {
        Self { put: 0, heap: BinaryHeap::new() }
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
