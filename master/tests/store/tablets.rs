//! Owning tablets, and giving them up.

use ramkeep_wire::data::Status;
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{KeyHash, TableId};

use crate::support::{Connection, Reply, TABLE, store, whole};

#[test]
fn nothing_is_served_of_a_table_that_is_not_owned() {
    let store = store(false, 64 << 10, 4);
    let mut connection = Connection::default();
    assert_eq!(
        connection.write(&store, b"k", b"v").unwrap().status,
        Status::Ok
    );
    assert!(store.drop_table(TABLE));
    let refused = Some(Reply::new(Status::WrongServer, 0, b""));
    assert_eq!(connection.read(&store, b"k"), refused);
    assert_eq!(connection.write(&store, b"k", b"v"), refused);
    assert_eq!(connection.remove(&store, b"k"), refused);
    assert!(!store.drop_table(TABLE));
}

#[test]
fn a_takeover_stays_where_it_was_when_the_grant_is_repeated() {
    let store = store(false, 64 << 10, 4);
    let mut connection = Connection::default();
    let grant = |first, last| TabletGrant {
        table: TableId(2),
        first: KeyHash(first),
        last: KeyHash(last),
    };
    let taken = store.take_tablets(&[grant(0, 9), grant(10, 19)]).unwrap();
    assert_eq!(taken[0], store.writer().log().appended_position());
    connection.write(&store, b"k", b"v").unwrap();
    assert_eq!(store.take_tablets(&[grant(10, 19)]).unwrap(), taken[1..]);
    assert!(store.take_tablets(&[grant(20, 29)]).unwrap()[0] > taken[0]);
    store
        .take_tablets(&[grant(40, 49), grant(5, 12)])
        .expect_err("overlaps");
    assert!(
        !store
            .tablets()
            .owns_range(TableId(2), KeyHash(40), KeyHash(49)),
        "all or nothing"
    );
}

#[test]
fn a_dropped_tables_objects_leave_the_index_and_others_stay() {
    let store = store(false, 64 << 10, 40);
    store.take_tablets(&[whole(TableId(2))]).unwrap();
    let mut connection = Connection::default();
    for n in 0..3000u32 {
        connection
            .write(&store, &n.to_le_bytes(), b"value")
            .unwrap();
    }
    let alone = store.stats();
    let tablets = store.tablets();
    for n in 0..3000u32 {
        let key = n.to_le_bytes();
        let owned = tablets.owned(TableId(2), &key).unwrap();
        let answer = store
            .writer()
            .write(&store.pin(), owned, b"x", Default::default());
        assert_eq!(answer.status, Status::Ok);
    }
    assert_eq!(store.stats().objects, 6000);
    store.drop_table(TableId(2));
    let mut steps = 0;
    while store.sweep(64) {
        steps += 1;
    }
    assert!(steps > 10, "swept in steps");
    let left = store.stats();
    assert_eq!(
        (left.objects, left.live, left.payload, left.reserved),
        (alone.objects, alone.live, alone.payload, alone.reserved)
    );
    assert_eq!(
        connection.read(&store, &7u32.to_le_bytes()),
        Some(Reply::new(Status::Ok, 1, b"value"))
    );
}

#[test]
fn what_an_earlier_stay_left_does_not_come_to_light_again() {
    let store = store(false, 64 << 10, 4);
    let mut connection = Connection::default();
    connection.write(&store, b"k", b"v").unwrap();
    store.drop_table(TABLE);
    store.take_tablets(&[whole(TABLE)]).unwrap();
    assert_eq!(
        connection.read(&store, b"k"),
        Some(Reply::new(Status::Absent, 0, b""))
    );
}
