//! Saying who we are (documentation, "Authentication Methods" and "SASL Authentication").
//!
//! What the connection string demands is checked here too: `require_auth` and `channel_binding`. A
//! server that skips the end of SCRAM hasn't shown that it knows the password, and is refused.

use bytes::{Bytes, BytesMut};
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::frontend,
};

use super::{
    connection::Connection,
    conninfo::{
        AuthMethod, ChannelBindingMode, ConnInfo, Host, Secret,
        passfile::{self, Wanted},
    },
    error::PgError,
    message::Message,
};

/// What authentication needs to know of the connection.
pub(super) struct Channel<'a> {
    pub(super) info: &'a ConnInfo,
    pub(super) host: &'a Host,
    /// Host and address, for messages.
    pub(super) target: String,
    /// As in the startup message; it counts for the password file.
    pub(super) database: &'a str,
    pub(super) tls: bool,
    /// What to bind SCRAM to, if there is TLS and the certificate has such a hash.
    pub(super) end_point: Option<Vec<u8>>,
}

/// Where a SCRAM exchange is.
enum Scram {
    NotBegun,
    /// The first message was sent.
    First(Box<ScramSha256>),
    /// The proof was sent.
    Proof(Box<ScramSha256>),
    /// The server has shown that it knows the password too.
    Done,
}

/// Answers the server's questions until it is content.
pub(super) async fn authenticate(
    connection: &mut Connection,
    channel: &Channel<'_>,
) -> Result<(), PgError> {
    let mut asked = false;
    let mut bound = false;
    let mut scram = Scram::NotBegun;
    loop {
        let (kind, body) = match connection.receive(None).await? {
            Message::Authentication(kind, body) => (kind, body),
            Message::Error(error) => return Err(error.into()),
            Message::Notice(notice) => {
                tracing::debug!(%notice, "while authenticating");
                continue;
            }
            // NegotiateProtocolVersion: the server knows older ones only, and says so.
            Message::Other(b'v') => continue,
            other => return Err(unexpected(&other)),
        };
        let mut answer = BytesMut::new();
        match (kind, scram) {
            (0, state) => {
                if let Scram::First(_) | Scram::Proof(_) = state {
                    return Err(channel.refuse("the server left SCRAM before its end"));
                }
                if !asked {
                    channel.require(AuthMethod::None)?;
                }
                if channel.info.channel_binding == ChannelBindingMode::Require && !bound {
                    return Err(channel.refuse(
                        "channel_binding=require, but the server didn't ask for SCRAM with it",
                    ));
                }
                return Ok(());
            }
            (3, Scram::NotBegun) => {
                channel.require(AuthMethod::Password)?;
                channel.require_unbound()?;
                if !channel.tls && !channel.host.is_socket() {
                    return Err(channel.refuse_with(
                        "the server asks for the password in clear text on a connection without \
                         TLS",
                        "use sslmode=require or stronger, or scram-sha-256 in pg_hba.conf",
                    ));
                }
                let password = channel.password()?;
                encoded(frontend::password_message(password.reveal().as_bytes(), &mut answer))?;
                scram = Scram::NotBegun;
            }
            (5, Scram::NotBegun) => {
                channel.require(AuthMethod::Md5)?;
                channel.require_unbound()?;
                let Some(&[a, b, c, d]) = body.first_chunk::<4>() else {
                    return Err(PgError::protocol("the server's md5 salt is too short"));
                };
                let password = channel.password()?;
                let user = channel.info.user.as_bytes();
                let hash = md5_hash(user, password.reveal().as_bytes(), [a, b, c, d]);
                encoded(frontend::password_message(hash.as_bytes(), &mut answer))?;
                scram = Scram::NotBegun;
            }
            (10, Scram::NotBegun) => {
                channel.require(AuthMethod::Scram)?;
                let (mechanism, binding) = channel.choose_mechanism(body)?;
                bound = mechanism == SCRAM_SHA_256_PLUS;
                let password = channel.password()?;
                let exchange = ScramSha256::new(password.reveal().as_bytes(), binding);
                let first = exchange.message();
                encoded(frontend::sasl_initial_response(mechanism, first, &mut answer))?;
                scram = Scram::First(Box::new(exchange));
            }
            (11, Scram::First(mut exchange)) => {
                exchange.update(&body).map_err(|e| channel.refuse(format!("SCRAM: {e}")))?;
                encoded(frontend::sasl_response(exchange.message(), &mut answer))?;
                scram = Scram::Proof(exchange);
            }
            (12, Scram::Proof(mut exchange)) => {
                exchange.finish(&body).map_err(|e| {
                    channel
                        .refuse(format!("the server didn't prove that it knows the password: {e}"))
                })?;
                scram = Scram::Done;
                continue;
            }
            (2 | 7 | 8 | 9, _) => {
                return Err(channel.refuse_with(
                    "the server asks for GSSAPI, SSPI or Kerberos, which aren't supported",
                    "give this user another method in pg_hba.conf, such as scram-sha-256 or cert",
                ));
            }
            (kind, _) => {
                return Err(channel.refuse(format!(
                    "the server asks for an authentication method out of turn, or one that isn't \
                     known (number {kind})"
                )));
            }
        }
        asked = true;
        connection.send(&answer).await?;
    }
}

fn encoded(result: std::io::Result<()>) -> Result<(), PgError> {
    result.map_err(|e| PgError::protocol(format!("a message can't be written: {e}")))
}

pub(in crate::postgres) fn unexpected(message: &Message) -> PgError {
    let name = match message {
        Message::Other(tag) => format!("message of type {:?}", char::from(*tag)),
        Message::Authentication(..) => "request to authenticate".to_owned(),
        Message::CopyData(_) => "data".to_owned(),
        Message::CommandComplete(tag) => format!("end of the command {tag:?}"),
        Message::RowDescription(_) | Message::DataRow(_) => "row".to_owned(),
        other => format!("{other:?}"),
    };
    PgError::protocol(format!("the server sent a {name} out of turn"))
}

impl Channel<'_> {
    fn refuse(&self, reason: impl Into<String>) -> PgError {
        PgError::Auth { target: self.target.clone(), reason: reason.into(), hint: None }
    }

    fn refuse_with(&self, reason: impl Into<String>, hint: impl Into<String>) -> PgError {
        let (reason, hint) = (reason.into(), Some(hint.into()));
        PgError::Auth { target: self.target.clone(), reason, hint }
    }

    /// Fails if `require_auth` doesn't allow the method that the server asks for.
    fn require(&self, method: AuthMethod) -> Result<(), PgError> {
        match &self.info.require_auth {
            Some(required) if !required.allows(method) => Err(self.refuse(format!(
                "the server asks for {}, which require_auth={} doesn't allow",
                match method {
                    AuthMethod::Password => "a cleartext password",
                    AuthMethod::Md5 => "an md5 password",
                    AuthMethod::Scram => "SCRAM",
                    AuthMethod::None | AuthMethod::Other => "nothing",
                },
                required.text
            ))),
            _ => Ok(()),
        }
    }

    /// No password without channel binding if it is required.
    fn require_unbound(&self) -> Result<(), PgError> {
        match self.info.channel_binding {
            ChannelBindingMode::Require => Err(self
                .refuse("channel_binding=require, but the server asks for a password without it")),
            _ => Ok(()),
        }
    }

    /// The password of the connection string, else of the password file.
    fn password(&self) -> Result<Secret, PgError> {
        if let Some(password) = &self.info.password {
            return Ok(password.clone());
        }
        let mut problem = None;
        if let Some(path) = &self.info.passfile {
            let wanted = Wanted {
                host: &self.host.in_password_file(),
                port: self.host.port,
                database: self.database,
                user: &self.info.user,
            };
            let answer = passfile::look_up(path, wanted);
            if let Some(password) = answer.password {
                return Ok(password);
            }
            problem = answer.problem;
        }
        Err(self.refuse_with(
            format!("the server asks for a password of {}, and none is given", self.info.user),
            problem.unwrap_or_else(|| {
                format!(
                    "put a line {}:{}:{}:{}:password into the password file (~/.pgpass, mode 0600)",
                    self.host.in_password_file().replace(':', "\\:"),
                    self.host.port,
                    self.database,
                    self.info.user
                )
            }),
        ))
    }

    /// The best of the offered mechanisms, and what SCRAM says about channel binding.
    fn choose_mechanism(
        &self,
        mut offer: Bytes,
    ) -> Result<(&'static str, ChannelBinding), PgError> {
        let (mut plain, mut plus) = (false, false);
        while offer.first().is_some_and(|&b| b != 0) {
            let name = super::message::bytes_to_nul(&mut offer)?;
            plain |= name == SCRAM_SHA_256.as_bytes();
            plus |= name == SCRAM_SHA_256_PLUS.as_bytes();
        }
        let mode = self.info.channel_binding;
        if plus && !self.tls {
            return Err(self.refuse("the server offers channel binding without TLS"));
        }
        match &self.end_point {
            Some(hash) if plus && mode != ChannelBindingMode::Disable => {
                return Ok((
                    SCRAM_SHA_256_PLUS,
                    ChannelBinding::tls_server_end_point(hash.clone()),
                ));
            }
            _ if mode == ChannelBindingMode::Require => {
                return Err(self.refuse_with(
                    "channel_binding=require can't be had",
                    match (self.tls, plus) {
                        (false, _) => "it needs TLS: use sslmode=require or stronger",
                        (true, false) => "the server doesn't offer it",
                        (true, true) => "the server's certificate has a signature without a hash",
                    },
                ));
            }
            _ => {}
        }
        if !plain {
            return Err(self
                .refuse("the server offers no SASL mechanism that is supported (SCRAM-SHA-256)"));
        }
        // "y" tells the server that we would have bound the channel, had it offered it: a man in
        // the middle that took the offer away is found out. "n": we don't.
        let could = self.end_point.is_some() && mode != ChannelBindingMode::Disable;
        Ok((
            SCRAM_SHA_256,
            match could {
                true => ChannelBinding::unrequested(),
                false => ChannelBinding::unsupported(),
            },
        ))
    }
}
