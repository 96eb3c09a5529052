//! The types of objects that commands name.

/// A type of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Jobs,
    Attempts,
    Units,
    Pools,
    Nodes,
    Queues,
}

impl Kind {
    /// Reads a type as users write it: plural, singular or short, as in kubectl.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "jobs" | "job" | "j" => Self::Jobs,
            "attempts" | "attempt" | "at" => Self::Attempts,
            "units" | "unit" | "un" => Self::Units,
            "pools" | "pool" | "po" => Self::Pools,
            "nodes" | "node" | "no" => Self::Nodes,
            "queues" | "queue" | "qu" => Self::Queues,
            _ => return None,
        })
    }
}
