//! What comes before a peer is known: the messages of the handshake, its two sides, and the batches
//! that envelopes are given out in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ramkeep_rpc::{Batch, Handshake, HelloError, Identity};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::hello::{Hello, Proof, Refusal, SharedKey, Side, Welcome, mac};
use ramkeep_wire::{Party, PeerId, postcards};

fuzz_target!(|input: &[u8]| {
    let Some((&which, bytes)) = input.split_first() else {
        return;
    };
    match which % 6 {
        0 => messages(bytes),
        1 => key_file(bytes),
        2 => batch(bytes),
        3 => handshakes(bytes),
        4 => handshakes(&enveloped(bytes)),
        _ => batch(&enveloped(bytes)),
    }
});

fn messages(bytes: &[u8]) {
    if let Ok(hello) = postcards::decode::<Hello>(bytes) {
        let key = SharedKey([1; 32]);
        let welcome = Welcome {
            cluster: hello.cluster,
            party: Party(9),
            nonce: [2; 16],
            mac: [0; 32],
        };
        let both =
            [Side::Connecting, Side::Accepting].map(|side| mac(Some(&key), side, &hello, &welcome));
        assert_ne!(both[0], both[1], "one side's proof is never the other's");
        assert_eq!(postcards::decode(&postcards::encode(&hello)), Ok(hello));
    }
    if let Ok(welcome) = postcards::decode::<Welcome>(bytes) {
        assert_eq!(postcards::decode(&postcards::encode(&welcome)), Ok(welcome));
    }
    let _ = postcards::decode::<Proof>(bytes);
    if let Ok(refusal) = postcards::decode::<Refusal>(bytes) {
        assert!(!refusal.to_string().is_empty());
    }
}

fn key_file(bytes: &[u8]) {
    let key = SharedKey::from_file_contents(bytes);
    let trimmed = bytes.trim_ascii().len();
    assert_eq!(key.is_some(), trimmed >= SharedKey::MIN_FILE_BYTES);
}

/// Cuts the bytes into payloads of good envelopes.
fn enveloped(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in bytes.chunks(48) {
        let kind = Kind::from_code(piece[0].into()).unwrap_or(Kind::Hello);
        let header = Header::new(kind, piece[0].into(), Party::NONE, Party(piece[0].into()));
        envelope::append(&mut out, header, &piece[1..]);
    }
    out
}

/// Both sides are given the bytes in pieces: nobody gets through without the key, and who refuses says
/// so once.
fn handshakes(bytes: &[u8]) {
    // Of those who know no cluster yet only coordinators are talked to.
    let party = Party::coordinator(PeerId(1));
    let identity = Identity::new(Some(SharedKey([1; 32]))).with_party(party);
    let (mut hello, mut nothing) = (Vec::new(), Vec::new());
    let connecting = Handshake::connect(&identity, false, Party::NONE, [2; 16], &mut hello);
    let accepting = Handshake::accept(&identity, false, [3; 16], &mut nothing);
    for side in [connecting, accepting] {
        let mut side = side.expect("with a key, anybody may be talked to");
        let size = 1 + usize::from(bytes.first().copied().unwrap_or(0));
        for piece in bytes.chunks(size) {
            let mut out = Vec::new();
            match side.handle(piece, &mut out) {
                Ok(opened) => assert_eq!(opened, None, "the key was guessed"),
                Err(error) => {
                    let told = out.len() > envelope::HEADER_LEN;
                    assert_eq!(told, matches!(error, HelloError::Refuse(_)));
                    break;
                }
            }
        }
    }
}

fn batch(bytes: &[u8]) {
    let mut batch = Batch::new(bytes);
    let mut given = 0;
    while let Some(envelope) = batch.next() {
        given += envelope::HEADER_LEN + envelope.payload.len();
        assert_eq!(batch.taken(), given);
    }
    assert!(given <= bytes.len());
    assert_eq!(batch.peek(), None, "what ended stays ended");
}
