//! Pages of lists: their size, and where the next one begins.

use prost::Message;
use tonic::Status;

use super::{convert, error};
use crate::model::limit::{PAGE_DEFAULT, PAGE_MAX};
use crate::model::validate::quote;

/// The page size for a request's `page_size`, where 0 means the default.
pub(super) fn page_size(requested: u32) -> Result<usize, Status> {
    match requested as usize {
        0 => Ok(PAGE_DEFAULT),
        size if size <= PAGE_MAX => Ok(size),
        size => Err(error::invalid(convert::invalid(
            "page_size",
            format!("{size} is not within 0 and {PAGE_MAX}"),
        ))),
    }
}

/// Reads a page token; `None` for the first page.
pub(super) fn page_token<T: std::str::FromStr>(text: &str) -> Result<Option<T>, Status> {
    read_token(text, "", |text| text.parse().ok())
}

/// Reads a page token by `read`; `of` is what that page must have had.
pub(super) fn read_token<T>(
    text: &str,
    of: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = || {
        let description = format!("{} is not the next_page_token of an earlier page{of}", quote(text));
        error::invalid(convert::invalid("page_token", description))
    };
    read(text).map(Some).ok_or_else(invalid)
}

/// A place in the order of a job's attempts: unit and number. (0, 0) is before the first, as numbers begin at 1.
pub(super) type Place = (u32, u32);

/// Reads the token of a page of attempts.
pub(super) fn attempts_token(text: &str) -> Result<Place, Status> {
    let place = |text: &str| {
        let (unit, number) = text.split_once('.')?;
        Some((unit.parse().ok()?, number.parse().ok()?))
    };
    Ok(read_token(text, "", place)?.unwrap_or_default())
}

/// Checks that a list of `what` has `min` to `max` entries.
pub(super) fn check_count(field: &str, what: &str, len: usize, min: usize, max: usize) -> Result<(), Status> {
    if (min..=max).contains(&len) {
        return Ok(());
    }
    let description = format!("{len} {what}, {min} to {max} are allowed");
    Err(error::invalid(convert::invalid(field, description)))
}

/// As many of the first objects as fit into a message of `bytes_max`, but at least one.
pub(super) fn fill_message<M: Message>(objects: impl Iterator<Item = M>, bytes_max: usize) -> Vec<M> {
    let mut bytes = 0;
    let mut fitting = Vec::new();
    for object in objects {
        bytes += object.encoded_len();
        if bytes > bytes_max && !fitting.is_empty() {
            break;
        }
        fitting.push(object);
    }
    fitting
}
