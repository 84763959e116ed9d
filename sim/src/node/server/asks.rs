//! What a server asks of the coordinator, and what it makes of the answers.

use std::time::Duration;

use ramkeep_backup::Backup;
use ramkeep_master::core::{Master, MasterConfig};
use ramkeep_master::probing::Prober;
use ramkeep_wire::coordinator::{Answer, Heartbeat, Refused, Request, Response};
use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::order::{Command, Order};
use ramkeep_wire::{Party, postcards};

use super::{Ask, Context, ServerNode};

/// How long a coordinator may take to answer.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

impl ServerNode {
    pub(super) fn ask(&mut self, context: &Context<'_>, request: Request) {
        self.coordinator.asks.push(Ask {
            request,
            sent: None,
            asked: context.now,
        });
    }

    pub(super) fn expire_asks(&mut self, context: &mut Context<'_>) {
        let late = |ask: &Ask| {
            ask.sent
                .is_some_and(|(_, sent)| context.now.since(sent) >= ASK_PATIENCE)
        };
        if self.coordinator.asks.iter().any(late) {
            if let Some(connection) = self.coordinator.connection {
                context.close(connection);
            }
            self.coordinator_lost(context);
        }
    }

    /// The connection to the coordinator is gone: who asked is told so, but enlisting goes on.
    pub(super) fn coordinator_lost(&mut self, context: &mut Context<'_>) {
        let not_before = context.now + self.config.reconnect;
        let link = &mut self.coordinator;
        link.connection = None;
        link.open = false;
        link.hint = None;
        link.which += 1;
        link.not_before = not_before;
        let (enlist, others): (Vec<_>, Vec<_>) = link
            .asks
            .drain(..)
            .partition(|ask| matches!(ask.request, Request::Enlist(_)));
        link.asks = enlist;
        for ask in &mut link.asks {
            ask.sent = None;
        }
        for ask in others {
            self.answer(context, &ask, None);
        }
    }

    pub(super) fn answered(&mut self, context: &mut Context<'_>, header: &Header, payload: &[u8]) {
        let asks = &mut self.coordinator.asks;
        let found = asks.iter().position(|ask| {
            ask.sent
                .is_some_and(|(number, _)| number == header.correlation)
        });
        let (Some(found), Ok(response)) = (found, postcards::decode::<Response>(payload)) else {
            return;
        };
        if let Answer::Refused(Refused::NotLeader { leader, .. }) = response.answer {
            self.ballot = self.ballot.max(response.ballot);
            if let Some(connection) = self.coordinator.connection {
                context.close(connection);
            }
            self.coordinator_lost(context);
            self.coordinator.hint = leader;
            return;
        }
        let ask = asks.remove(found);
        self.answer(context, &ask, Some(&response));
    }

    pub(super) fn answer(
        &mut self,
        context: &mut Context<'_>,
        ask: &Ask,
        response: Option<&Response>,
    ) {
        let asked = &ask.request;
        if let Some(response) = response {
            self.ballot = self.ballot.max(response.ballot);
            match &response.answer {
                Answer::Enlisted { .. } => return self.enlisted(context, &response.answer),
                Answer::Heard {
                    list: Some(list), ..
                } => self.take_list(context, list),
                Answer::Refused(Refused::Crashed) => self.stop(context),
                Answer::EpochRecorded => {
                    context.say(format_args!("recorded: {asked:?}"));
                }
                Answer::Refused(why) => {
                    context.say(format_args!("refused: {asked:?}: {why}"));
                }
                _ => {}
            }
        }
        if let Some(master) = &self.master {
            // What was never sent counts from when it was to be.
            let sent = ask.sent.map_or(ask.asked, |(_, sent)| sent);
            master.handle_answer(context.now, sent, asked, response);
        }
    }

    pub(super) fn enlisted(&mut self, context: &mut Context<'_>, answer: &Answer) {
        let Answer::Enlisted {
            server,
            cluster,
            key,
            settings,
            list,
        } = answer
        else {
            return;
        };
        context.say(format_args!(
            "enlisted as {server:?} at {}",
            self.config.address
        ));
        self.server = *server;
        self.settings = Some(settings.clone());
        if let Some(backup) = &mut self.backup {
            backup
                .assign(*cluster, *server, settings.lease_us)
                .expect("frames in memory can be assigned");
        }
        if self.config.roles.master {
            let config = MasterConfig {
                me: *server,
                cluster: *cluster,
                key: *key,
                settings: settings.clone(),
                memory: self.config.memory,
                seed: self.config.seed,
            };
            self.master = Some(Master::new(config).expect("enough memory for a master"));
        }
        self.probes.prober = Some(Prober::new(*server, self.config.seed));
        let list = list.clone();
        self.take_list(context, &list);
        if let Some(master) = &self.master {
            let command = Command::UpdateServers(list);
            let ballot = self.ballot;
            master.handle_order(Order { ballot, command });
        }
    }

    pub(super) fn heartbeat(&mut self, context: &mut Context<'_>) {
        let Some(settings) = &self.settings else {
            return;
        };
        if context.now < self.next_heartbeat {
            return;
        }
        let every = Duration::from_micros(settings.heartbeat_us.into());
        let renew = self.master.as_ref().and_then(Master::renew_every);
        self.next_heartbeat = context.now + renew.map_or(every, |renew| renew.min(every));
        let under_way = |ask: &Ask| matches!(ask.request, Request::Heartbeat(_));
        if self.coordinator.asks.iter().any(under_way) {
            return;
        }
        let mut report = match &self.master {
            Some(master) => master.heartbeat(),
            None => Heartbeat {
                list: self.list.version,
                ..Heartbeat::of(self.server)
            },
        };
        report.backup = self.backup.as_ref().map(Backup::stats);
        self.ask(context, Request::Heartbeat(report));
    }

    pub(super) fn send_asks(&mut self, context: &mut Context<'_>) {
        let from = self.me();
        let link = &mut self.coordinator;
        if link.asks.iter().all(|ask| ask.sent.is_some()) || context.now < link.not_before {
            return;
        }
        let Some(connection) = link.connection else {
            let next = &self.config.coordinators[link.which % self.config.coordinators.len()];
            let address = link.hint.take().unwrap_or_else(|| next.clone());
            link.connection = Some(context.connect(&address));
            return;
        };
        if !link.open {
            return;
        }
        for ask in link.asks.iter_mut().filter(|ask| ask.sent.is_none()) {
            link.next += 1;
            ask.sent = Some((link.next, context.now));
            let header = Header::new(Kind::CoordinatorRequest, link.next, Party::NONE, from);
            context.send_payload(connection, header, &postcards::encode(&ask.request));
        }
        link.asks.sort_by_key(|ask| ask.asked);
    }
}
