//! From an address to a connection on which the peer has proved its key and bid us welcome.
//!
//! The welcome matters: in TLS 1.3 the client is done before the server has judged the client's
//! key. Without it the first request would leave towards a peer that is about to refuse us.

use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, Error as TlsError};
use rustls_pki_types::ServerName;
use tokio::io::{ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::NotSent;
use crate::frame::{FrameReader, FrameWriter, Kind, Welcome, invalid};
use crate::tls::{Expect, Tls};
use crate::{Lane, Options};

pub(crate) type Reader = FrameReader<ReadHalf<TlsStream<TcpStream>>>;
pub(crate) type Writer = FrameWriter<WriteHalf<TlsStream<TcpStream>>>;

#[derive(Debug)]
pub(crate) struct Dialed {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    /// The key the server proved.
    pub(crate) spki: Vec<u8>,
    pub(crate) frame_bytes_max: usize,
    pub(crate) calls_max: usize,
}

pub(crate) async fn dial(
    tls: &Tls,
    options: &Options,
    address: &str,
    lane: Lane,
    expect: Expect,
) -> Result<Dialed, NotSent> {
    let refused = |error: io::Error| why(address, lane, &error);
    let config = tls.client(lane, expect).map_err(|error| refused(io::Error::other(error)))?;
    let connect = timeout(options.connect_timeout, TcpStream::connect(address)).await;
    let tcp = connect
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| NotSent::Connect { address: address.into(), cause: error.to_string() })?;
    let handshake = async {
        tcp.set_nodelay(true)?;
        // Sent to nobody (no SNI) and checked by nobody: keys are judged, not names.
        let name = ServerName::try_from("peer.invalid").expect("a DNS name");
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        welcomed(stream, options, lane).await
    };
    let handshake = timeout(options.handshake_timeout, handshake).await;
    handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(refused)
}

async fn welcomed(
    stream: TlsStream<TcpStream>,
    options: &Options,
    lane: Lane,
) -> io::Result<Dialed> {
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(lane.protocol().as_bytes()) {
        return Err(io::Error::other(TlsError::NoApplicationProtocol));
    }
    let spki = session.peer_certificates().and_then(|keys| keys.first());
    let spki = spki.ok_or_else(|| invalid("the peer proved no key"))?.to_vec();
    let (read, write) = split(stream);
    let mut reader = FrameReader::new(read, options.frame_bytes_max, options.silence_max);
    let first = reader.next().await?.ok_or_else(|| invalid("the peer closed without a welcome"))?;
    if first.kind != Kind::Welcome {
        return Err(invalid(&format!("a {:?} in place of the welcome", first.kind)));
    }
    let welcome: Welcome = postcard::from_bytes(&first.payload)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Dialed {
        reader,
        writer: FrameWriter::new(write),
        spki,
        frame_bytes_max: options.frame_bytes_max.min(welcome.frame_bytes_max as usize),
        calls_max: options.calls_max.min(welcome.calls_max as usize),
    })
}

fn why(address: &str, lane: Lane, error: &io::Error) -> NotSent {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<TlsError>());
    match cause {
        Some(
            TlsError::AlertReceived(AlertDescription::NoApplicationProtocol)
            | TlsError::NoApplicationProtocol,
        ) => NotSent::Version { address: address.into(), protocol: lane.protocol() },
        Some(TlsError::AlertReceived(AlertDescription::AccessDenied)) => {
            NotSent::NotAdmitted(address.into())
        }
        Some(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            NotSent::WrongKey(address.into())
        }
        _ => NotSent::Handshake { address: address.into(), cause: error.to_string() },
    }
}
