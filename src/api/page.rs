//! Pages of lists: how long one may be, and where the next begins.

use prost::Message;
use tonic::Status;

use super::proto::v1;
use super::{convert, error};
use crate::model::limit::{PAGE_DEFAULT, PAGE_MAX};
use crate::model::validate::quote;

/// The size of a page that is asked for.
pub(super) fn page_size(asked: u32) -> Result<usize, Status> {
    match asked as usize {
        0 => Ok(PAGE_DEFAULT),
        size if size <= PAGE_MAX => Ok(size),
        size => Err(error::invalid(convert::invalid(
            "page_size",
            format!("{size} is not within 0 and {PAGE_MAX}"),
        ))),
    }
}

/// Where the page before ended.
pub(super) fn page_token<T: std::str::FromStr>(text: &str) -> Result<Option<T>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let unknown = || {
        let description = format!("{} is not from a page before", quote(text));
        error::invalid(convert::invalid("page_token", description))
    };
    text.parse().map(Some).map_err(|_| unknown())
}

/// Checks how many entries a list has.
pub(super) fn count(field: &str, what: &str, len: usize, min: usize, max: usize) -> Result<(), Status> {
    if (min..=max).contains(&len) {
        return Ok(());
    }
    let description = format!("{len} {what}, {min} to {max} are allowed");
    Err(error::invalid(convert::invalid(field, description)))
}

/// As many of the jobs, at least one, as a message should carry.
pub(super) fn one_message(jobs: impl Iterator<Item = v1::Job>, bytes_max: usize) -> Vec<v1::Job> {
    let mut bytes = 0;
    let mut fitting = Vec::new();
    for job in jobs {
        bytes += job.encoded_len();
        if bytes > bytes_max && !fitting.is_empty() {
            break;
        }
        fitting.push(job);
    }
    fitting
}
