//! The translation between model values and generated messages, and the macros that state it as tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Error, proto};
use crate::model::high_water::JournalKey;
use crate::model::id::{
    Epoch, InstanceId, JobId, JournalId, NodeId, PoolId, QueueId, ReservationId, Revision, SpecId, Term,
};
use crate::model::interval::IntervalSet;
use crate::model::region::RegionCode;
use crate::model::shape::ShapeDigest;
use crate::model::time::Timestamp;
use crate::state::token::TokenKey;

/// A model value that is stored as `M`: a message, or the value of a message's field.
pub(super) trait Translate<M>: Sized {
    fn to_message(&self) -> M;

    /// # Errors
    /// [`Error::Unknown`] if the message holds what only a newer Weir writes, [`Error::Damaged`] if it
    /// holds what no Weir writes.
    fn from_message(message: M) -> Result<Self, Error>;
}

macro_rules! as_they_are {
    ($($type:ty),*) => {$(
        impl Translate<$type> for $type {
            fn to_message(&self) -> $type {
                self.clone()
            }

            fn from_message(message: $type) -> Result<Self, Error> {
                Ok(message)
            }
        }
    )*};
}
as_they_are!(bool, u32, u64, i32, String, BTreeMap<String, String>);

/// Types that wrap or narrow the integer that is stored.
macro_rules! numbers {
    ($($type:ident($inner:ty)),* $(,)?) => {$(
        impl Translate<$inner> for $type {
            fn to_message(&self) -> $inner {
                self.0
            }

            fn from_message(message: $inner) -> Result<Self, Error> {
                Ok(Self(message))
            }
        }
    )*};
}
numbers!(
    Revision(u64),
    Term(u64),
    Epoch(u64),
    JobId(u64),
    ReservationId(u64),
    Timestamp(u64),
    PoolId(u32),
    NodeId(u32),
    QueueId(u32)
);

macro_rules! narrow {
    ($($type:ty),*) => {$(
        impl Translate<u32> for $type {
            fn to_message(&self) -> u32 {
                u32::from(*self)
            }

            fn from_message(message: u32) -> Result<Self, Error> {
                Self::try_from(message).map_err(|_| Error::damaged(stringify!($type), message))
            }
        }
    )*};
}
narrow!(u8, u16);

impl Translate<u64> for JournalId {
    fn to_message(&self) -> u64 {
        self.get()
    }

    fn from_message(message: u64) -> Result<Self, Error> {
        Ok(Self::from_random(message))
    }
}

impl Translate<Vec<u8>> for [u8; 16] {
    fn to_message(&self) -> Vec<u8> {
        self.to_vec()
    }

    fn from_message(message: Vec<u8>) -> Result<Self, Error> {
        let len = message.len();
        Self::try_from(message).map_err(|_| Error::damaged("length of a 16-byte value", len))
    }
}

impl Translate<Vec<u8>> for InstanceId {
    fn to_message(&self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }

    fn from_message(message: Vec<u8>) -> Result<Self, Error> {
        Ok(Self(u128::from_be_bytes(Translate::from_message(message)?)))
    }
}

macro_rules! sixteen_bytes {
    ($($type:ident),*) => {$(
        impl Translate<Vec<u8>> for $type {
            fn to_message(&self) -> Vec<u8> {
                self.0.to_vec()
            }

            fn from_message(message: Vec<u8>) -> Result<Self, Error> {
                Translate::from_message(message).map(Self)
            }
        }
    )*};
}
sixteen_bytes!(SpecId, JournalKey, TokenKey, ShapeDigest);

/// Empty bytes where there is none.
impl Translate<Vec<u8>> for Option<JournalKey> {
    fn to_message(&self) -> Vec<u8> {
        self.as_ref().map_or_else(Vec::new, Translate::to_message)
    }

    fn from_message(message: Vec<u8>) -> Result<Self, Error> {
        if message.is_empty() { Ok(None) } else { Translate::from_message(message).map(Some) }
    }
}

impl Translate<String> for RegionCode {
    fn to_message(&self) -> String {
        self.as_str().to_owned()
    }

    fn from_message(message: String) -> Result<Self, Error> {
        if message.is_empty() {
            return Ok(Self::default());
        }
        Self::parse(&message).map_err(|_| Error::damaged("region", message))
    }
}

macro_rules! shared_text {
    ($($type:ty),*) => {$(
        impl Translate<String> for $type {
            fn to_message(&self) -> String {
                String::from(&**self)
            }

            fn from_message(message: String) -> Result<Self, Error> {
                Ok(message.into())
            }
        }
    )*};
}
shared_text!(Box<str>, Arc<str>);

macro_rules! pointers {
    ($($pointer:ident),*) => {$(
        impl<M, T: Translate<M>> Translate<M> for $pointer<T> {
            fn to_message(&self) -> M {
                (**self).to_message()
            }

            fn from_message(message: M) -> Result<Self, Error> {
                T::from_message(message).map(Self::new)
            }
        }
    )*};
}
pointers!(Box, Arc);

impl<M, T: Translate<M>> Translate<Option<M>> for Option<T> {
    fn to_message(&self) -> Option<M> {
        self.as_ref().map(T::to_message)
    }

    fn from_message(message: Option<M>) -> Result<Self, Error> {
        message.map(T::from_message).transpose()
    }
}

impl<M, T: Translate<M>> Translate<Vec<M>> for Vec<T> {
    fn to_message(&self) -> Vec<M> {
        self.iter().map(T::to_message).collect()
    }

    fn from_message(message: Vec<M>) -> Result<Self, Error> {
        message.into_iter().map(T::from_message).collect()
    }
}

impl<M, T: Translate<M>> Translate<Vec<M>> for Box<[T]> {
    fn to_message(&self) -> Vec<M> {
        self.iter().map(T::to_message).collect()
    }

    fn from_message(message: Vec<M>) -> Result<Self, Error> {
        message.into_iter().map(T::from_message).collect()
    }
}

impl Translate<proto::IntervalSet> for IntervalSet {
    fn to_message(&self) -> proto::IntervalSet {
        let pairs = self.intervals().iter().flat_map(|[start, end]| [*start, end - start]);
        proto::IntervalSet { starts_and_lengths: pairs.collect() }
    }

    fn from_message(message: proto::IntervalSet) -> Result<Self, Error> {
        let (pairs, rest) = message.starts_and_lengths.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(Error::damaged("interval without a length", rest[0]));
        }
        let interval = |[start, len]: &[u32; 2]| {
            let end = start.checked_add(*len).ok_or_else(|| Error::damaged("interval", start))?;
            Ok([*start, end])
        };
        Ok(Self::from_intervals(pairs.iter().map(interval).collect::<Result<Vec<_>, Error>>()?))
    }
}

/// The stored form of a field. Kinds of field:
/// - none: by its type's own translation;
/// - `required`: a message that is always there;
/// - `default`: a message that is left out where the value is the default;
/// - `absent_as_zero`: an optional enum, 0 where there is none.
macro_rules! put {
    ($value:expr) => {
        $crate::state::record::translate::Translate::to_message($value)
    };
    ($value:expr, required) => {
        Some($crate::state::record::translate::Translate::to_message($value))
    };
    ($value:expr, default) => {
        (*$value != Default::default())
            .then(|| $crate::state::record::translate::Translate::to_message($value))
    };
    ($value:expr, absent_as_zero) => {
        $value.as_ref().map_or(0, $crate::state::record::translate::Translate::to_message)
    };
}

/// The value of a stored field; see [`put`].
macro_rules! get {
    ($value:expr, $name:expr) => {
        $crate::state::record::translate::Translate::from_message($value)?
    };
    ($value:expr, $name:expr, required) => {{
        let message = $value.ok_or($crate::state::record::Error::Missing { field: $name })?;
        $crate::state::record::translate::Translate::from_message(message)?
    }};
    ($value:expr, $name:expr, default) => {
        match $value {
            Some(message) => $crate::state::record::translate::Translate::from_message(message)?,
            None => Default::default(),
        }
    };
    ($value:expr, $name:expr, absent_as_zero) => {
        match $value {
            0 => None,
            value => Some($crate::state::record::translate::Translate::from_message(value)?),
        }
    };
}

/// A struct whose fields are a message's: `name in the message: name in the struct`.
macro_rules! message {
    ($type:ident as $message:ident { $($wire:ident: $field:ident $([$kind:ident])?),* $(,)? }) => {
        impl $crate::state::record::translate::Translate<$crate::state::record::proto::$message> for $type {
            fn to_message(&self) -> $crate::state::record::proto::$message {
                let Self { $($field),* } = self;
                $crate::state::record::proto::$message { $($wire: put!($field $(, $kind)?)),* }
            }

            fn from_message(
                message: $crate::state::record::proto::$message,
            ) -> Result<Self, $crate::state::record::Error> {
                let $crate::state::record::proto::$message { $($wire),* } = message;
                Ok(Self { $($field: get!($wire, stringify!($wire) $(, $kind)?)),* })
            }
        }
    };
}

/// An enum without fields whose variants have the same names in the message's enum.
macro_rules! message_enum {
    ($type:ident { $($variant:ident),* $(,)? }) => {
        impl $crate::state::record::translate::Translate<i32> for $type {
            fn to_message(&self) -> i32 {
                match self {
                    $(Self::$variant => $crate::state::record::proto::$type::$variant as i32,)*
                }
            }

            fn from_message(message: i32) -> Result<Self, $crate::state::record::Error> {
                use $crate::state::record::{Error, proto};
                match proto::$type::try_from(message) {
                    $(Ok(proto::$type::$variant) => Ok(Self::$variant),)*
                    Ok(proto::$type::Unspecified) => Err(Error::Missing { field: stringify!($type) }),
                    Err(_) => Err(Error::unknown(stringify!($type), message)),
                }
            }
        }
    };
}

pub(super) use {get, message, message_enum, put};
