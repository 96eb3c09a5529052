//! What objects of a list can be sorted by.

/// What objects are sorted by. An absent value comes before all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Absent,
    Number(i128),
    Text(String),
}

impl Key {
    pub(super) fn number(value: impl Into<i128>) -> Self {
        Self::Number(value.into())
    }

    pub(super) fn text(value: &str) -> Self {
        Self::Text(value.to_owned())
    }

    /// The value of a field that may be absent.
    pub(super) fn of(value: Option<u64>) -> Self {
        value.map_or(Self::Absent, Self::number)
    }
}

/// The names of what objects can be sorted by, each with how it is found.
pub(super) type Keys<T> = Vec<(&'static str, fn(&T) -> Key)>;
