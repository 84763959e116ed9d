//! Enumerating a table, page by page.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;

use crate::error::Error;
use crate::table::{Table, unexpected};
use crate::types::{Object, Operation, Outcome, Page, ScanPosition};

type NextPage = Pin<Box<dyn Future<Output = Result<Page, Error>> + Send>>;

/// All objects of a table: a [`Stream`] of `Result<(key, Object), Error>`. After an error it goes
/// on where it failed.
///
/// Each page has the table's deadline for itself.
#[must_use = "streams do nothing unless polled"]
pub struct Scan {
    table: Table,
    ready: VecDeque<(Bytes, Object)>,
    /// Where the next page begins; none after the last.
    next: Option<ScanPosition>,
    fetching: Option<NextPage>,
}

impl Scan {
    pub(crate) fn new(table: Table, from: ScanPosition) -> Self {
        Self {
            table,
            ready: VecDeque::new(),
            next: Some(from),
            fetching: None,
        }
    }

    /// The next object, `None` after the last. As the stream's `next`, without an extension trait.
    pub async fn next(&mut self) -> Option<Result<(Bytes, Object), Error>> {
        poll_fn(|cx| self.poll_object(cx)).await
    }

    fn poll_object(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(Bytes, Object), Error>>> {
        loop {
            if let Some(object) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(object)));
            }
            let fetching = match (&mut self.fetching, &self.next) {
                (Some(fetching), _) => fetching,
                (None, None) => return Poll::Ready(None),
                (None, Some(from)) => {
                    let page = fetch(self.table.clone(), from.clone());
                    self.fetching.insert(Box::pin(page))
                }
            };
            let Poll::Ready(page) = fetching.as_mut().poll(cx) else {
                return Poll::Pending;
            };
            self.fetching = None;
            match page {
                Ok(page) => {
                    self.ready.extend(page.objects);
                    self.next = page.next;
                }
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

async fn fetch(table: Table, from: ScanPosition) -> Result<Page, Error> {
    let operation = Operation::Scan {
        table: table.id(),
        from: &from,
    };
    match table.one(operation).await? {
        Outcome::Page(page) => Ok(*page),
        other => Err(unexpected(&other)),
    }
}

impl Stream for Scan {
    type Item = Result<(Bytes, Object), Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_object(cx)
    }
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan")
            .field("table", &self.table)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
