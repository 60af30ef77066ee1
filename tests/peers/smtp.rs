//! An SMTP server that stores the mails it is given: in the clear, with STARTTLS, or TLS from the first byte; with or without a
//! password. It says nothing that a mail server would not say.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Plain,
    StartTls,
    Tls,
}

/// A mail as it came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mail {
    pub from: String,
    pub to: Vec<String>,
    pub text: String,
    /// Whether it came through TLS.
    pub encrypted: bool,
    /// The words of AUTH, if any.
    pub auth: Option<String>,
}

/// A certificate for `localhost`, and the authority that signed it.
pub struct Authority {
    pub pem: String,
    config: Arc<ServerConfig>,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::DigitalSignature];
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let server_key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&server_key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Self { pem, config: Arc::new(config) }
    }
}

/// The server. Ends with the test.
pub struct Server {
    pub port: u16,
    mails: Arc<Mutex<Vec<Mail>>>,
}

impl Server {
    /// `password`: what AUTH PLAIN must bring.
    pub fn start(mode: Mode, authority: &Authority, password: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mails = Arc::new(Mutex::new(Vec::new()));
        let (stored, tls) = (Arc::clone(&mails), Arc::clone(&authority.config));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (stored, tls) = (Arc::clone(&stored), Arc::clone(&tls));
                std::thread::spawn(move || {
                    // A client that breaks off breaks off.
                    if let Ok(mails) = serve(stream, mode, &tls, password) {
                        stored.lock().unwrap().extend(mails);
                    }
                });
            }
        });
        Self { port, mails }
    }

    /// The mails, at least one of them: the conversation ends after the client has gone on.
    pub fn wait_for_mail(&self) -> Vec<Mail> {
        for _ in 0..500 {
            let mails = self.mails.lock().unwrap().clone();
            if !mails.is_empty() {
                return mails;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("no mail came");
    }

    pub fn mails(&self) -> Vec<Mail> {
        self.mails.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, mode: Mode, tls: &Arc<ServerConfig>, password: Option<&str>) -> io::Result<Vec<Mail>> {
    let encrypt = |stream: TcpStream| {
        let connection = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
        Ok::<_, io::Error>(BufReader::new(StreamOwned::new(connection, stream)))
    };
    if mode == Mode::Tls {
        return Ok(talk(&mut encrypt(stream)?, true, true, false, password)?.0);
    }
    let mut plain = BufReader::new(stream);
    let (mails, upgrade) = talk(&mut plain, true, false, mode == Mode::StartTls, password)?;
    if upgrade { Ok(talk(&mut encrypt(plain.into_inner())?, false, true, false, password)?.0) } else { Ok(mails) }
}

/// One conversation: the mails, and whether the client wants TLS now.
fn talk<S: Read + Write>(
    input: &mut BufReader<S>,
    greet: bool,
    encrypted: bool,
    offer_tls: bool,
    password: Option<&str>,
) -> io::Result<(Vec<Mail>, bool)> {
    let mut mails = Vec::new();
    let mut mail = Mail { encrypted, ..Mail::default() };
    if greet {
        say(input, "220 test")?;
    }
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok((mails, false));
        }
        let line = line.trim_end();
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => {
                let extra = if offer_tls { "250-STARTTLS\r\n" } else { "" };
                let auth = if password.is_some() { "250-AUTH PLAIN\r\n" } else { "" };
                say(input, &format!("250-test\r\n{extra}{auth}250 8BITMIME"))?;
            }
            "STARTTLS" => {
                say(input, "220 go ahead")?;
                return Ok((mails, true));
            }
            "AUTH" => {
                let right = password.is_some_and(|password| rest == format!("PLAIN {password}"));
                mail.auth = Some(rest.to_owned());
                say(input, if right { "235 welcome" } else { "535 wrong password" })?;
            }
            "MAIL" | "RCPT" if password.is_some() && mail.auth.is_none() => say(input, "530 who are you?")?,
            "MAIL" => {
                mail.from = rest.to_owned();
                say(input, "250 ok")?;
            }
            "RCPT" => {
                mail.to.push(rest.to_owned());
                say(input, "250 ok")?;
            }
            "DATA" => {
                say(input, "354 go on")?;
                let mut text = String::new();
                while !text.ends_with("\r\n.\r\n") && input.read_line(&mut text)? > 0 {}
                mails.push(Mail { text, ..mail.clone() });
                say(input, "250 stored")?;
            }
            "QUIT" => {
                say(input, "221 bye")?;
                return Ok((mails, false));
            }
            _ => say(input, "250 ok")?,
        }
    }
}

fn say<S: Read + Write>(input: &mut BufReader<S>, text: &str) -> io::Result<()> {
    let output = input.get_mut();
    output.write_all(format!("{text}\r\n").as_bytes())?;
    output.flush()
}
