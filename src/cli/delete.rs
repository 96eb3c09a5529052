//! `weir delete`: deletes pools and queues.

use std::fmt;

use super::connect::new_token;
use super::exit::{INVALID, NOT_FOUND, USAGE};
use super::kind::Kind;
use super::output::{announce, report};
use super::{Connect, Failure};
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::text::escape;
use crate::model::validate::quote;

/// Delete pools and queues.
///
/// A pool is forgotten with its nodes and prices, and its name is free for another agent. Its agent must have been
/// stopped for 15 s, and nothing may run there: drain it first. A queue must have no jobs that have not ended, and no
/// queues below it. What has ended stays in the history.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir delete queue/research/vision\n  weir delete queue/research/vision queue/research   the queue below first\n  weir delete pool/gz-nvidia\n\nA pool, step by step:\n  weir drain gz-nvidia --evict      what runs there starts elsewhere\n  (stop its agent, wait 15 s)\n  weir delete pool/gz-nvidia"
)]
pub struct Delete {
    /// pool/NAME or queue/NAME, any number; or TYPE followed by names.
    #[arg(required = true, value_name = "OBJECT")]
    objects: Vec<String>,
    /// Succeed also for objects that don't exist.
    #[arg(long)]
    ignore_not_found: bool,
}

/// What can be deleted.
#[derive(Debug, PartialEq, Eq)]
enum Object {
    Pool(String),
    Queue(String),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => write!(f, "pool/{}", escape(name)),
            Self::Queue(name) => write!(f, "queue/{}", escape(name)),
        }
    }
}

impl Object {
    /// Reads arguments: either each names its type, or the first one is the type of all others.
    fn list(arguments: &[String]) -> Result<Vec<Self>, Failure> {
        let (first, rest) =
            (arguments.first().map_or("", String::as_str), arguments.get(1..).unwrap_or_default());
        if Kind::parse(first).is_none() {
            let object = |text: &String| match text.split_once('/') {
                Some((kind, name)) => Self::new(kind, name),
                None => Err(Failure::new(
                    INVALID,
                    format!("{} has no type: write pool/NAME or queue/NAME", quote(text)),
                )),
            };
            return arguments.iter().map(object).collect();
        }
        if rest.is_empty() {
            return Err(Failure::new(USAGE, format!("name the object: weir delete {first}/NAME")));
        }
        rest.iter().map(|name| Self::new(first, name)).collect()
    }

    fn new(kind: &str, name: &str) -> Result<Self, Failure> {
        let refused =
            |why: &str| Err(Failure::new(INVALID, format!("{} can't be deleted: {why}", quote(kind))));
        match Kind::parse(kind) {
            Some(Kind::Pools) => Ok(Self::Pool(name.to_owned())),
            Some(Kind::Queues) => Ok(Self::Queue(name.to_owned())),
            Some(Kind::Jobs | Kind::Attempts | Kind::Units) => {
                refused("`weir cancel job/NAME` ends a job; its history stays")
            }
            Some(Kind::Nodes) => refused("a node is removed when its pool no longer reports it"),
            None => refused("use pool or queue"),
        }
    }

    async fn delete(&self, client: &Client) -> Result<(), Failure> {
        let (token, revision) = (new_token(), 0);
        match self {
            Self::Pool(name) => {
                let request = v1::DeletePoolRequest { token, name: name.clone(), revision };
                client.pools().delete_pool(request).await?;
            }
            Self::Queue(name) => {
                let request = v1::DeleteQueueRequest { token, name: name.clone(), revision };
                client.queues().delete_queue(request).await?;
            }
        }
        Ok(())
    }
}

impl Delete {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let objects = Object::list(&self.objects)?;
        let client = connect.client()?;
        let mut first_failure = None;
        for object in objects {
            match object.delete(&client).await {
                Ok(()) => announce(&format!("{object} deleted"))?,
                Err(error) if error.code == NOT_FOUND && self.ignore_not_found => {
                    report(&format!("{object} does not exist"));
                }
                // The objects after it are deleted all the same.
                Err(error) if first_failure.is_some() => drop(error.print()),
                Err(error) => first_failure = Some(error),
            }
        }
        first_failure.map_or(Ok(0), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(arguments: &[&str]) -> Result<Vec<Object>, String> {
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        Object::list(&arguments).map_err(|failure| failure.message)
    }

    #[test]
    fn objects_are_named_with_their_type_or_after_one() {
        let queue = |name: &str| Object::Queue(name.to_owned());
        let pool = |name: &str| Object::Pool(name.to_owned());
        assert_eq!(list(&["queue/a/b", "po/x"]), Ok(vec![queue("a/b"), pool("x")]));
        assert_eq!(list(&["pool", "x", "y"]), Ok(vec![pool("x"), pool("y")]));
        assert!(list(&["x"]).unwrap_err().contains("pool/NAME or queue/NAME"));
        assert!(list(&["pool"]).unwrap_err().contains("weir delete pool/NAME"));
        assert!(list(&["job/x"]).unwrap_err().contains("weir cancel"));
        assert!(list(&["node", "x"]).unwrap_err().contains("no longer reports"));
        assert!(list(&["region/x"]).unwrap_err().contains("use pool or queue"));
    }
}
