//! The store against a map: random operations on several connections while the durable position
//! moves on at random.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ramkeep_master::store::Store;
use ramkeep_wire::data::{Op, RejectRules, Status};
use ramkeep_wire::{LogPosition, Version};

use crate::support::{Ask, Connection, Objects, Reply, make_durable, replay, store};

#[derive(Clone, Debug)]
enum Step {
    Operate {
        connection: usize,
        op: Op,
        key: u8,
        value: Vec<u8>,
        rules: RejectRules,
    },
    /// The durable position moves on by this share of what is appended, in 256ths.
    Progress(u8),
    /// The head before is closed on its backups.
    Close,
}

fn rules() -> impl Strategy<Value = RejectRules> {
    let version = prop_oneof![3 => Just(None), 1 => (0..6u64).prop_map(|v| Some(Version(v)))];
    let rarely = || prop::bool::weighted(0.15);
    (rarely(), rarely(), version).prop_map(|(exists, absent, unless_version)| RejectRules {
        exists,
        absent,
        unless_version,
    })
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..400),
        2 => (-3..3i64).prop_map(|n| n.to_le_bytes().to_vec()),
        1 => Just(i64::MAX.to_le_bytes().to_vec()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        Just(Op::Read),
        Just(Op::Write),
        Just(Op::Write),
        Just(Op::Remove),
        Just(Op::Increment)
    ];
    let operate = (0..3usize, op, 0..6u8, value(), rules()).prop_map(
        |(connection, op, key, value, rules)| {
            let value = if matches!(op, Op::Write | Op::Increment) {
                value
            } else {
                Vec::new()
            };
            let rules = if op == Op::Read {
                RejectRules::default()
            } else {
                rules
            };
            Step::Operate {
                connection,
                op,
                key,
                value,
                rules,
            }
        },
    );
    prop_oneof![8 => operate, 2 => any::<u8>().prop_map(Step::Progress), 1 => Just(Step::Close)]
}

/// What the store should hold, and when what of it may be shown.
#[derive(Default)]
struct Model {
    objects: Objects,
    /// Where each key's last mutation ends.
    changed: BTreeMap<Vec<u8>, LogPosition>,
    safe_version: u64,
    /// Where each mutation ends, and what the log held then.
    history: Vec<(LogPosition, Objects)>,
}

impl Model {
    fn operate(&mut self, op: Op, key: &[u8], value: &[u8], rules: RejectRules) -> (Reply, bool) {
        let current = self.objects.get(key).cloned();
        let version = current.as_ref().map(|(version, _)| *version);
        let number = version.map_or(0, |version| version.0);
        if op == Op::Read {
            let absent = (Reply::new(Status::Absent, 0, b""), false);
            return current.map_or(absent, |(_, value)| {
                (Reply::new(Status::Ok, number, &value), false)
            });
        }
        let operand = <[u8; 8]>::try_from(value).map(i64::from_le_bytes);
        if op == Op::Increment && operand.is_err() {
            return (Reply::new(Status::Invalid, 0, b""), false);
        }
        if rules.reject(version) {
            return (Reply::new(Status::Rejected, number, b""), false);
        }
        let next = version.map_or(self.safe_version.max(1), |version| version.0 + 1);
        let mut put = |value: &[u8]| {
            self.objects
                .insert(key.to_vec(), (Version(next), value.to_vec()));
        };
        match op {
            Op::Write => {
                put(value);
                (Reply::new(Status::Ok, next, b""), true)
            }
            Op::Increment => {
                let counter = match current {
                    None => Ok(0),
                    Some((_, bytes)) => <[u8; 8]>::try_from(&bytes[..]).map(i64::from_le_bytes),
                };
                let Ok(counter) = counter else {
                    return (Reply::new(Status::NotACounter, number, b""), false);
                };
                let Some(sum) = counter.checked_add(operand.unwrap()) else {
                    return (Reply::new(Status::Overflow, number, b""), false);
                };
                put(&sum.to_le_bytes());
                (Reply::new(Status::Ok, next, &sum.to_le_bytes()), true)
            }
            Op::Remove => {
                self.safe_version = self.safe_version.max(number + 1);
                let removed = self.objects.remove(key).is_some();
                (Reply::new(Status::Ok, number, b""), removed)
            }
            Op::Read | Op::Scan => unreachable!("handled above, or not asked"),
        }
    }

    fn durable_state(&self, until: LogPosition) -> Objects {
        let durable = self.history.iter().rev().find(|(end, _)| *end <= until);
        durable.map(|(_, state)| state.clone()).unwrap_or_default()
    }
}

/// What an operation must be answered, and not before the log is durable up to where.
struct Expected {
    reply: Reply,
    from: LogPosition,
}

struct Run {
    store: Store,
    connections: [Connection; 3],
    expected: [BTreeMap<u32, Expected>; 3],
    model: Model,
}

impl Run {
    fn new() -> Self {
        Self {
            store: store(true, 8 << 10, 60),
            connections: Default::default(),
            expected: Default::default(),
            model: Model::default(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Operate {
                connection,
                op,
                key,
                value,
                rules,
            } => {
                self.operate(*connection, *op, &[*key], value, *rules);
            }
            Step::Progress(share) => self.progress(*share),
            Step::Close => self.close(),
        }
        self.check_replies();
    }

    fn operate(&mut self, number: usize, op: Op, key: &[u8], value: &[u8], rules: RejectRules) {
        let before = self.store.writer().log().appended_position();
        let connection = &mut self.connections[number];
        let id = connection.send(
            &self.store,
            &[Ask {
                op,
                key,
                value,
                rules,
            }],
        )[0];
        let after = self.store.writer().log().appended_position();
        let replies = connection.replies();
        if replies
            .get(&id)
            .is_some_and(|reply| reply.status == Status::RetryLater)
        {
            assert!(
                self.store.writer().log().previous_head().is_some(),
                "rolling over"
            );
            assert_eq!(before, after, "what was refused changed nothing");
            return;
        }
        let (reply, mutates) = self.model.operate(op, key, value, rules);
        assert_eq!(mutates, after > before, "{op:?} of {key:?} appended or not");
        if mutates {
            self.model.changed.insert(key.to_vec(), after);
            self.model.history.push((after, self.model.objects.clone()));
        }
        // Which nothing refused unseen needs: an operand of another length.
        let unseen = reply == Reply::new(Status::Invalid, 0, b"") && value.len() != 8;
        let seen = self.model.changed.get(key).copied().unwrap_or_default();
        let from = if unseen { LogPosition::ZERO } else { seen };
        self.expected[number].insert(id, Expected { reply, from });
        self.take(number, replies);
    }

    fn take(&mut self, number: usize, replies: BTreeMap<u32, Reply>) {
        for (id, reply) in replies {
            let expected = self.expected[number]
                .remove(&id)
                .expect("an answer to what was asked");
            assert_eq!(reply, expected.reply);
            let durable = self.store.durability().position();
            assert!(expected.from <= durable, "{reply:?} shown at {durable:?}");
        }
    }

    fn check_replies(&mut self) {
        for number in 0..self.connections.len() {
            self.connections[number].release(&self.store);
            let replies = self.connections[number].replies();
            self.take(number, replies);
        }
    }

    /// Moves the durable position on, as replication may: in a head whose predecessor is closed and
    /// whose active mark is durable, or in the head before; always to the end of a group, for a
    /// replica is certified at those only.
    fn progress(&mut self, share: u8) {
        let mut writer = self.store.writer();
        let log = writer.log_mut();
        let id = log.previous_head().unwrap_or(log.head());
        let length = log.info(id).unwrap().length;
        let durable = log.durability().position();
        let from = if durable.segment() == id {
            durable.offset()
        } else {
            0
        };
        let to = from + (length - from) * u32::from(share) / 255;
        let Some(active) = log.active_end(id) else {
            return;
        };
        let groups = self.model.history.iter().map(|(end, _)| *end);
        let ends = groups
            .filter(|end| end.segment() == id)
            .map(LogPosition::offset);
        if let Some(end) = ends.chain([active]).filter(|end| *end <= to).max() {
            log.set_durable(id, end);
        }
    }

    fn close(&mut self) {
        let mut writer = self.store.writer();
        if let Some(previous) = writer.log().previous_head() {
            writer.log_mut().predecessor_closed(previous);
        }
    }

    fn check_log(&self) {
        let durable = self.store.durability().position();
        assert_eq!(
            replay(&self.store, durable),
            self.model.durable_state(durable)
        );
        let everything = self.store.writer().log().appended_position();
        assert_eq!(replay(&self.store, everything), self.model.objects);
    }

    fn finish(mut self) {
        self.check_log();
        make_durable(&self.store);
        self.check_replies();
        let unanswered: BTreeSet<_> = self.expected.iter().flat_map(BTreeMap::keys).collect();
        assert!(unanswered.is_empty(), "never answered: {unanswered:?}");
        assert!(
            self.connections
                .iter()
                .all(|connection| !connection.session.holds())
        );
        self.check_log();
        assert_eq!(self.store.stats().objects, self.model.objects.len() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn every_answer_is_right_and_shown_only_when_it_is_durable(
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let mut run = Run::new();
        for (number, step) in steps.iter().enumerate() {
            run.step(step);
            if number % 50 == 49 {
                run.check_log();
            }
        }
        run.finish();
    }
}

#[test]
fn a_miss_waits_for_the_removal_that_it_saw() {
    let store = store(true, 8 << 10, 4);
    let mut connection = Connection::default();
    assert_eq!(
        connection.read(&store, b"k"),
        Some(Reply::new(Status::Absent, 0, b""))
    );
    assert_eq!(connection.write(&store, b"k", b"v"), None);
    make_durable(&store);
    assert_eq!(
        connection.read(&store, b"k"),
        Some(Reply::new(Status::Ok, 1, b"v"))
    );
    assert_eq!(connection.remove(&store, b"k"), None);
    assert_eq!(
        connection.read(&store, b"k"),
        None,
        "the removal may not survive"
    );
    assert_eq!(connection.remove(&store, b"k"), None);
    connection.release(&store);
    assert_eq!(connection.replies().len(), 1, "only the write is durable");
    make_durable(&store);
    connection.release(&store);
    let replies: Vec<_> = connection
        .replies()
        .into_values()
        .map(|reply| reply.status)
        .collect();
    assert_eq!(replies, [Status::Ok, Status::Absent, Status::Ok]);
}

#[test]
fn versions_of_a_key_go_on_after_its_removal() {
    let store = store(false, 8 << 10, 8);
    let mut connection = Connection::default();
    let version = |reply: Option<Reply>| reply.unwrap().version.0;
    assert_eq!(version(connection.write(&store, b"k", b"1")), 1);
    assert_eq!(version(connection.write(&store, b"k", b"2")), 2);
    assert_eq!(version(connection.write(&store, b"other", b"1")), 1);
    assert_eq!(version(connection.remove(&store, b"k")), 2);
    assert_eq!(version(connection.write(&store, b"k", b"3")), 3);
    assert_eq!(
        version(connection.write(&store, b"new", b"1")),
        3,
        "safe for all keys"
    );
    assert_eq!(version(connection.write(&store, b"other", b"2")), 2);
}
