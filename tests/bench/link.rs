//! One TLS connection of the load generator: logs in, writes raw stanzas, reads raw bytes.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::scram;

/// What a connection may have unread before the generator gives up, in bytes.
const BUFFER_MAX: usize = 16 << 20;

/// A connected client.
pub struct Link {
    /// The TLS stream.
    pub tls: TlsStream<TcpStream>,
    /// Bytes read and not yet consumed.
    pub buffer: Vec<u8>,
}

/// TLS settings that accept the server's self-signed certificate and never resume, so that a login
/// always pays for a full handshake.
pub fn tls_config() -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    Ok(Arc::new(config))
}

impl Link {
    /// Connects by direct TLS (XEP-0368), and no more.
    pub async fn connect(address: &str, tls: &Arc<ClientConfig>) -> Result<Link> {
        let tcp =
            TcpStream::connect(address).await.with_context(|| format!("failed to connect to `{address}`"))?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let stream = TlsConnector::from(tls.clone()).connect(name, tcp).await?;
        Ok(Link { tls: stream, buffer: Vec::new() })
    }

    /// Ends the connection, and waits until the server has done so as well, whether with an alert or without.
    pub async fn close(mut self) -> Result<()> {
        self.tls.shutdown().await?;
        while self.tls.read_buf(&mut self.buffer).await.is_ok_and(|read| read > 0) {}
        Ok(())
    }

    /// Connects by direct TLS (XEP-0368), authenticates with SCRAM-SHA-1 and binds `resource`.
    pub async fn log_in(
        address: &str,
        tls: &Arc<ClientConfig>,
        user: &str,
        password: &str,
        resource: &str,
    ) -> Result<Link> {
        let mut link = Link::connect(address, tls).await?;
        link.authenticate(user, password, resource).await?;
        Ok(link)
    }

    /// As [`Link::log_in`], from the stream header on.
    pub async fn authenticate(&mut self, user: &str, password: &str, resource: &str) -> Result<()> {
        self.prove(user, password).await?;
        self.write(&format!(
            "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{resource}</resource></bind></iq>"
        ))
        .await?;
        let bound = self.until("</iq>").await?;
        if !bound.contains(resource) {
            bail!("failed to bind `{resource}`: {bound}");
        }
        Ok(())
    }

    /// From the first stream header to the features of the second one (SCRAM-SHA-1).
    pub async fn prove(&mut self, user: &str, password: &str) -> Result<()> {
        self.write(HEADER).await?;
        self.until("</stream:features>").await?;
        let first = scram::first(user);
        self.write(&format!(
            "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1'>{}</auth>",
            BASE64.encode(format!("n,,{first}"))
        ))
        .await?;
        let challenge = decode(&self.until("</challenge>").await?)?;
        let answer = scram::last(&first, &challenge, password)?;
        self.write(&format!(
            "<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>{}</response>",
            BASE64.encode(answer)
        ))
        .await?;
        self.until("</success>").await?;
        self.write(HEADER).await?;
        self.until("</stream:features>").await?;
        Ok(())
    }

    /// Asks for the roster and sends initial presence, as every client does.
    pub async fn appear(&mut self) -> Result<()> {
        self.write("<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq><presence/>").await?;
        // the session's own presence comes back to it (RFC 6121, 4.2.2)
        self.until("<presence").await?;
        Ok(())
    }

    /// Writes `text` and flushes.
    pub async fn write(&mut self, text: &str) -> Result<()> {
        self.tls.write_all(text.as_bytes()).await?;
        self.tls.flush().await?;
        Ok(())
    }

    /// Reads until `mark` was seen, and returns all up to and with it.
    pub async fn until(&mut self, mark: &str) -> Result<String> {
        loop {
            if let Some(at) = find(&self.buffer, mark.as_bytes()) {
                let rest = self.buffer.split_off(at + mark.len());
                let text = String::from_utf8(std::mem::replace(&mut self.buffer, rest))?;
                return Ok(text);
            }
            for failure in ["</failure>", "</stream:error>", "type='error'", "type=\"error\""] {
                if find(&self.buffer, failure.as_bytes()).is_some() {
                    bail!("expected `{mark}`, heard {}", String::from_utf8_lossy(&self.buffer));
                }
            }
            self.fill().await?;
        }
    }

    /// Reads what the socket has, at least one byte.
    pub async fn fill(&mut self) -> Result<()> {
        if self.buffer.len() > BUFFER_MAX {
            bail!("more than {BUFFER_MAX} bytes unread");
        }
        if self.tls.read_buf(&mut self.buffer).await? == 0 {
            bail!("the server closed the connection after {}", String::from_utf8_lossy(&self.buffer));
        }
        Ok(())
    }
}

/// A stream header to the server under test.
pub const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' to='localhost' version='1.0'>";

/// First place of `needle` in `hay`.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}

fn decode(challenge: &str) -> Result<String> {
    let end = challenge.rfind('<').context("no challenge")?;
    let start = challenge[..end].rfind('>').context("no challenge")? + 1;
    Ok(String::from_utf8(BASE64.decode(&challenge[start..end])?)?)
}

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
