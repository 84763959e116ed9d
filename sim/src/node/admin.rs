//! A process of one who makes and drops tables: a conversation over the network.

use ramkeep_control::{Asking, Sequencing};
use ramkeep_rpc::Identity;
use ramkeep_wire::Micros;
use ramkeep_wire::coordinator::Request;

use super::{Context, delivered};
use crate::connections::{Connections, Happening};
use crate::network::NetEvent;
use crate::workload::tables::{Admin, TableBooks};

/// Of its one table of wires.
const ROOM: u8 = 0;

/// A process that makes and drops tables.
#[derive(Debug)]
pub struct AdminNode {
    asking: Asking<Admin>,
    connections: Connections,
    /// What it does and was told.
    pub books: TableBooks,
}

impl AdminNode {
    /// Knows these coordinators.
    #[must_use]
    pub fn new(coordinators: &[String], books: TableBooks) -> Self {
        let (identity, coordinators) = (Identity::new(None), coordinators.to_vec());
        Self {
            asking: Asking::new(
                ROOM,
                identity.clone(),
                coordinators,
                Sequencing::AwaitsLease,
            ),
            connections: Connections::new(identity, &[]),
            books,
        }
    }

    /// Whether it has asked for its table to be dropped, and waits for the answer.
    #[must_use]
    pub fn drops(&self) -> bool {
        let conversation = self.asking.conversation();
        let mut asked = conversation.asked(&Admin);
        conversation.is_sent(&Admin) && asked.any(|ask| matches!(ask, Request::DropTable { .. }))
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        let (books, asking) = (self.books.next_timeout(), self.asking.next_timeout());
        let all = [books, asking, self.connections.next_timeout()];
        all.into_iter().flatten().min()
    }

    pub(super) fn timer(&mut self, context: &mut Context<'_>) {
        self.asking.handle_tick(context.now);
        let news = self.connections.handle_tick(context);
        self.heed(context, news);
    }

    pub(super) fn net(&mut self, context: &mut Context<'_>, event: &NetEvent) {
        let news = self.connections.handle(context, event);
        self.heed(context, news);
    }

    fn heed(&mut self, context: &mut Context<'_>, news: Vec<Happening>) {
        let now = context.now;
        for happening in news {
            match happening {
                Happening::Up {
                    wire,
                    local,
                    peer,
                    cluster,
                } => {
                    self.asking.handle_up(now, wire, (local, peer), cluster);
                }
                Happening::Received { wire, bytes } => {
                    self.asking.handle_received(now, wire, &delivered(&bytes));
                }
                Happening::Down { wire, end } => {
                    self.asking.handle_down(now, wire, &end);
                }
                _ => {}
            }
        }
        self.poke(context);
    }

    /// Does what is to be done now.
    pub fn poke(&mut self, context: &mut Context<'_>) {
        self.books.act(context, &mut self.asking);
        while let Some(output) = self.asking.poll_output() {
            self.connections.perform(context, output);
        }
    }
}
