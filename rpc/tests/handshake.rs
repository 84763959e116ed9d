//! Who may talk to whom.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::TcpListener;

use common::{PATIENCE, Raw, Server, cluster, key, member, server_identity};
use ramkeep_rpc::{Address, Caller, Closed, ConnectError, Identity, Link, PollMode, WorkerPool};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::hello::{Refusal, Welcome};
use ramkeep_wire::{ClientId, Party, ServerId, postcards};

async fn connect(server: &Server, identity: &Identity, to: Party) -> Result<Link, ConnectError> {
    Link::connect(&server.address, identity, to, PollMode::Adaptive).await
}

fn refusal(outcome: Result<Link, ConnectError>) -> Refusal {
    let error = outcome.expect_err("should be refused");
    error.refusal().expect("is a refusal").clone()
}

#[tokio::test]
async fn a_peer_with_the_same_key_is_served() {
    let server = Server::start_as(PollMode::Adaptive, &server_identity(Some(key(1))));
    let identity = Identity::new(Some(key(1)))
        .with_cluster(cluster(1))
        .with_party(Party::client(ClientId(5)));
    let link = connect(&server, &identity, Party::server(ServerId(7)))
        .await
        .unwrap();
    assert_eq!(link.peer(), Party::server(ServerId(7)));
    assert_eq!(link.local(), Party::client(ClientId(5)));
    let answer = Caller::new(link).call(Kind::Order, b"hi", PATIENCE).await;
    assert_eq!(answer.unwrap(), b"hi");
}

#[tokio::test]
async fn a_peer_with_another_key_or_none_is_refused() {
    for (serving, connecting) in [
        (Some(key(1)), Some(key(2))),
        (Some(key(1)), None),
        (None, Some(key(1))),
    ] {
        let server = Server::start_as(PollMode::Adaptive, &server_identity(serving));
        let outcome = connect(&server, &member(connecting), Party::NONE).await;
        assert_eq!(refusal(outcome), Refusal::Key);
    }
}

#[tokio::test]
async fn a_welcome_changed_on_its_way_is_refused() {
    let server = Server::start_as(PollMode::Adaptive, &server_identity(Some(key(1))));
    for claimed in [cluster(1), cluster(2)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let between = listener.local_addr().unwrap().into();
        let mut behind = Raw::silent(&server.address);
        let relaying = std::thread::spawn(move || {
            let mut front = Raw(listener.accept().unwrap().0);
            let (header, hello) = front.receive().unwrap();
            behind.send(header, &hello);
            let (header, welcome) = behind.receive().unwrap();
            let mut welcome: Welcome = postcards::decode(&welcome).unwrap();
            welcome.cluster = claimed;
            front.send(header, &postcards::encode(&welcome));
            front.receive().map(|(header, _)| header.kind)
        });
        let newcomer = member(Some(key(1)));
        let link = Link::connect(&between, &newcomer, Party::NONE, PollMode::Never).await;
        let told = relaying.join().unwrap();
        if claimed == cluster(1) {
            assert_eq!(link.unwrap().cluster(), claimed, "as the server said it");
            assert_eq!(told, Some(Kind::Proof));
        } else {
            assert_eq!(refusal(link), Refusal::Key);
            assert_eq!(told, Some(Kind::Refusal));
        }
    }
}

#[tokio::test]
async fn a_process_of_another_cluster_or_none_is_refused_by_a_server() {
    let server = Server::start(PollMode::Adaptive);
    let stranger = Identity::new(None).with_cluster(cluster(2));
    let outcome = connect(&server, &stranger, Party::NONE).await;
    assert_eq!(refusal(outcome), Refusal::Cluster(cluster(1)));

    let newcomer = Identity::new(None);
    let outcome = connect(&server, &newcomer, Party::NONE).await;
    assert_eq!(refusal(outcome), Refusal::Cluster(cluster(1)), "it is told");
    assert!(newcomer.join(cluster(1)));
    let link = connect(&server, &newcomer, Party::NONE).await.unwrap();
    assert_eq!(link.cluster(), cluster(1));
}

#[tokio::test]
async fn a_restarted_server_is_not_taken_for_the_one_before() {
    let server = Server::start(PollMode::Adaptive);
    let outcome = connect(&server, &member(None), Party::server(ServerId(6))).await;
    assert_eq!(refusal(outcome), Refusal::Party(Party::server(ServerId(7))));
}

#[tokio::test]
async fn a_server_that_enlists_later_refuses_what_is_for_another_from_then_on() {
    let identity = Identity::new(None).with_cluster(cluster(1));
    let server = Server::start_as(PollMode::Adaptive, &identity);
    let early = Caller::new(connect(&server, &member(None), Party::NONE).await.unwrap());
    assert_eq!(early.link().peer(), Party::NONE);
    early.call(Kind::Order, b"", PATIENCE).await.unwrap();

    identity.set_party(Party::server(ServerId(9)));
    early.call(Kind::Order, b"", PATIENCE).await.unwrap();
    let to = Party::server(ServerId(9));
    connect(&server, &member(None), to).await.unwrap();
    let outcome = connect(&server, &member(None), Party::server(ServerId(7))).await;
    assert_eq!(refusal(outcome), Refusal::Party(to));
}

#[test]
fn a_process_without_a_key_does_not_listen_to_other_machines() {
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let open: Address = "0.0.0.0:0".parse().unwrap();
    let router = ramkeep_rpc::Router::new();
    let refused = pool.serve(&open, &server_identity(None), router.clone());
    let error = refused.err().expect("should be refused").to_string();
    assert!(error.contains("key file"), "{error}");
    pool.serve(&open, &server_identity(Some(key(1))), router)
        .unwrap();
    pool.shutdown();
}

#[tokio::test]
async fn a_process_without_a_key_does_not_connect_to_other_machines() {
    let elsewhere: Address = "192.0.2.1:7100".parse().unwrap();
    let outcome = Link::connect(
        &elsewhere,
        &Identity::new(None),
        Party::NONE,
        PollMode::Never,
    )
    .await;
    let error = outcome.expect_err("should be refused").to_string();
    assert!(error.contains("key file"), "{error}");
}

#[tokio::test]
async fn unix_sockets_serve_and_a_file_left_behind_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let address: Address = format!("unix:{}", dir.path().join("s").display())
        .parse()
        .unwrap();
    // As a killed process leaves it.
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap());

    let pool = WorkerPool::start(1, PollMode::Adaptive).unwrap();
    let router = common::echo_router(&Default::default());
    let identity = server_identity(None);
    let serving = pool.serve(&address, &identity, router.clone()).unwrap();
    assert!(
        pool.serve(&address, &identity, router).is_err(),
        "a living listener keeps its file"
    );
    let newcomer = member(None);
    let link = Link::connect(&address, &newcomer, Party::NONE, PollMode::Adaptive);
    let caller = Caller::new(link.await.unwrap());
    let answer = caller.call(Kind::Order, &[1; 300_000], PATIENCE).await;
    assert_eq!(answer.unwrap(), vec![1; 300_000]);

    serving.stop(PATIENCE).await;
    assert!(!dir.path().join("s").exists());
    let error = caller.call(Kind::Order, b"", PATIENCE).await;
    assert_eq!(
        error,
        Err(ramkeep_rpc::CallError::Closed(Closed::Refused(
            Refusal::Stopping
        )))
    );
    pool.shutdown();
}
