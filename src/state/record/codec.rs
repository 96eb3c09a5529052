//! Writing and reading of plain values, and the macros that put records together from them.

use crate::model::mutant::Mutant;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("corrupt record: {what} at byte {at} is {found}")]
pub struct Corrupt {
    pub what: &'static str,
    pub at: usize,
    pub found: u64,
}

/// Bytes being read.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn corrupt(&self, what: &'static str, found: u64) -> Corrupt {
        Corrupt { what, at: self.at, found }
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Corrupt> {
        let rest = &self.bytes[self.at..];
        if len > rest.len() {
            return Err(self.corrupt("length", len as u64));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn finish(&self) -> Result<(), Corrupt> {
        if self.remaining() == 0 { Ok(()) } else { Err(self.corrupt("rest", self.remaining() as u64)) }
    }
}

/// A value with a form on disk.
pub(super) trait Record: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt>;
}

impl Record for u8 {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        Ok(input.take(1)?[0])
    }
}

impl Record for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        let mut rest = *self;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = u8::get(input)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(input.corrupt("integer", value))
    }
}

macro_rules! narrow {
    ($($type:ty),*) => {$(
        impl Record for $type {
            fn put(&self, out: &mut Vec<u8>) {
                u64::from(*self).put(out);
            }

            fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
                let value = u64::get(input)?;
                Self::try_from(value).map_err(|_| input.corrupt(stringify!($type), value))
            }
        }
    )*};
}
narrow!(u16, u32);

impl Record for u128 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        Ok(Self::from_le_bytes(<[u8; 16]>::get(input)?))
    }
}

impl Record for i32 {
    fn put(&self, out: &mut Vec<u8>) {
        ((self << 1) ^ (self >> 31)).cast_unsigned().put(out);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        let value = u32::get(input)?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }
}

impl Record for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        match u8::get(input)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(input.corrupt("bool", u64::from(other))),
        }
    }
}

impl<const N: usize> Record for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(input.take(N)?);
        Ok(bytes)
    }
}

impl Record for str8::Text<'_> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.0.len() as u64).put(out);
        out.extend_from_slice(self.0.as_bytes());
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        Err(input.corrupt("borrowed text", 0))
    }
}

/// Text that is only written.
mod str8 {
    pub(super) struct Text<'a>(pub(super) &'a str);
}

fn get_text<'a>(input: &mut Input<'a>) -> Result<&'a str, Corrupt> {
    let len = u64::get(input)?;
    let len = usize::try_from(len).map_err(|_| input.corrupt("length", len))?;
    let bytes = input.take(len)?;
    std::str::from_utf8(bytes).map_err(|error| input.corrupt("text", error.valid_up_to() as u64))
}

macro_rules! text {
    ($($type:ty),*) => {$(
        impl Record for $type {
            fn put(&self, out: &mut Vec<u8>) {
                str8::Text(self).put(out);
            }

            fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
                Ok(get_text(input)?.into())
            }
        }
    )*};
}
text!(String, Box<str>, Arc<str>);

macro_rules! pointer {
    ($($pointer:ident),*) => {$(
        impl<T: Record> Record for $pointer<T> {
            fn put(&self, out: &mut Vec<u8>) {
                (**self).put(out);
            }

            fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
                Ok(Self::new(T::get(input)?))
            }
        }
    )*};
}
pointer!(Box, Arc);

impl<T: Record> Record for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        Ok(if bool::get(input)? { Some(T::get(input)?) } else { None })
    }
}

impl<T: Record> Record for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        self.iter().for_each(|item| item.put(out));
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        let len = u64::get(input)?;
        // An item takes at least one byte: a length beyond the bytes left is a lie, and must not
        // make us reserve memory for it.
        if len > input.remaining() as u64 {
            return Err(input.corrupt("list length", len));
        }
        let whole = |item: &Result<T, Corrupt>| item.is_ok() || !Mutant::SwallowTornBatch.is_on();
        (0..len).map(|_| T::get(input)).take_while(whole).collect()
    }
}

impl<T: Record> Record for Box<[T]> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        self.iter().for_each(|item| item.put(out));
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        Ok(Vec::get(input)?.into())
    }
}

impl<K: Record + Ord, V: Record> Record for BTreeMap<K, V> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        for (key, value) in self {
            key.put(out);
            value.put(out);
        }
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        Ok(Vec::<(K, V)>::get(input)?.into_iter().collect())
    }
}

impl<A: Record, B: Record> Record for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        Ok((A::get(input)?, B::get(input)?))
    }
}

/// A struct as its fields, in the order given.
macro_rules! record_struct {
    ($type:ident { $($field:ident),* $(,)? }) => {
        impl $crate::state::record::codec::Record for $type {
            fn put(&self, out: &mut Vec<u8>) {
                let Self { $($field),* } = self;
                $($field.put(out);)*
            }

            fn get(input: &mut $crate::state::record::codec::Input<'_>) -> Result<Self, $crate::state::record::codec::Corrupt> {
                $(let $field = $crate::state::record::codec::Record::get(input)?;)*
                Ok(Self { $($field),* })
            }
        }
    };
}

/// An enum as a tag and its fields.
macro_rules! record_enum {
    ($type:ident { $($tag:literal => $variant:ident $({ $($field:ident),* })? $(( $($part:ident),* ))?),* $(,)? }) => {
        impl $crate::state::record::codec::Record for $type {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $({ $($field),* })? $(( $($part),* ))? => {
                        out.push($tag);
                        $($($field.put(out);)*)?
                        $($($part.put(out);)*)?
                    })*
                }
            }

            fn get(input: &mut $crate::state::record::codec::Input<'_>) -> Result<Self, $crate::state::record::codec::Corrupt> {
                match <u8 as $crate::state::record::codec::Record>::get(input)? {
                    $($tag => {
                        $($(let $field = $crate::state::record::codec::Record::get(input)?;)*)?
                        $($(let $part = $crate::state::record::codec::Record::get(input)?;)*)?
                        Ok(Self::$variant $({ $($field),* })? $(( $($part),* ))?)
                    })*
                    other => Err(input.corrupt(concat!("tag of ", stringify!($type)), u64::from(other))),
                }
            }
        }
    };
}

/// Newtypes as what they wrap.
macro_rules! record_newtype {
    ($($type:ident),* $(,)?) => {$(
        impl $crate::state::record::codec::Record for $type {
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }

            fn get(input: &mut $crate::state::record::codec::Input<'_>) -> Result<Self, $crate::state::record::codec::Corrupt> {
                Ok(Self($crate::state::record::codec::Record::get(input)?))
            }
        }
    )*};
}

pub(super) use {record_enum, record_newtype, record_struct};
