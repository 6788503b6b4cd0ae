//! Authorities that sign certificates, and clients and servers that show them.

use std::{fs, path::Path};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// An authority that signs whatever it is asked to.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "An authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Authority(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate with these names, whatever else `edit` makes of it.
    pub fn certify(
        &self,
        names: Vec<SanType>,
        edit: impl FnOnce(&mut CertificateParams),
    ) -> Result<Identity> {
        let (mut params, key) = (named(names), KeyPair::generate()?);
        edit(&mut params);
        let cert = params.signed_by(&key, &self.0)?;
        Ok(Identity { cert: cert.der().clone(), key })
    }

    /// Writes the certificate of a node of these roles into a folder; the lines of `[cluster]` that name it.
    pub fn certify_node(&self, folder: &Path, roles: &[&str]) -> Result<String> {
        let roles = roles.iter().map(|role| format!("{role}.rookery-cluster"));
        let names = std::iter::once("rookery-cluster".to_owned()).chain(roles);
        let names = names.map(|name| Ok(SanType::DnsName(name.try_into()?))).collect::<Result<_>>()?;
        let uses = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (cert, key) = self.certify(names, |params| params.extended_key_usages = uses)?.pem();
        let files = [("ca", "ca.pem", self.pem()), ("cert", "node.pem", cert), ("key", "node.key", key)];
        let lines = files.into_iter().map(|(word, name, text)| {
            let path = folder.join(name);
            fs::write(&path, text)?;
            Ok(format!("{word} = {path:?}\n"))
        });
        lines.collect()
    }
}

/// A certificate and its key.
pub struct Identity {
    cert: CertificateDer<'static>,
    key: KeyPair,
}

impl Identity {
    /// One that nobody vouches for.
    pub fn self_signed(names: Vec<SanType>) -> Result<Identity> {
        let (params, key) = (named(names), KeyPair::generate()?);
        let cert = params.self_signed(&key)?;
        Ok(Identity { cert: cert.der().clone(), key })
    }

    /// The certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// Certificate and key as files hold them.
    pub fn pem(&self) -> (String, String) {
        use base64::{Engine, prelude::BASE64_STANDARD};
        let body = BASE64_STANDARD.encode(&self.cert);
        let cert = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        (cert, self.key.serialize_pem())
    }

    /// What a client shows.
    pub fn chain(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.cert.clone()], PrivateKeyDer::Pkcs8(self.key.serialize_der().into()))
    }
}

fn named(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params
}

/// An account's address as RFC 6120, 13.7.1.4 wants it in a certificate.
pub fn account(address: &str) -> SanType {
    SanType::OtherName((vec![1, 3, 6, 1, 5, 5, 7, 8, 5], address.into()))
}
