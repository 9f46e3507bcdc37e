//! The handshake of protocol 1.0, as the server has it: SCRAM-SHA-256 in JSON.

use super::User;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use pbkdf2::hmac::{Hmac, KeyInit, Mac};
use pbkdf2::sha2::{Digest, Sha256};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;

const MAGIC: [u8; 4] = [0xc3, 0xbd, 0xc2, 0x34];
const SALT: &[u8] = b"salt of the double";
const ROUNDS: u32 = 16;

fn keyed(key: &[u8], data: &str) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.chain_update(data).finalize().into_bytes().to_vec()
}

fn hear(stream: &mut TcpStream) -> io::Result<Value> {
    let mut said = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        match byte[0] {
            0 => return Ok(serde_json::from_slice(&said)?),
            byte => said.push(byte),
        }
    }
}

fn say(stream: &mut TcpStream, said: Value) -> io::Result<()> {
    stream.write_all(format!("{said}\0").as_bytes())
}

fn refuse(stream: &mut TcpStream, code: i64, why: &str) -> io::Result<Option<User>> {
    let said = json!({"success": false, "error": why, "error_code": code});
    say(stream, said)?;
    Ok(None)
}

fn part<'a>(message: &'a str, letter: &str) -> &'a str {
    let mut parts = message.split(',');
    let found = parts.find_map(|part| part.strip_prefix(letter)?.strip_prefix('='));
    found.unwrap_or_default()
}

/// Who has connected; nobody where the password is wrong.
pub fn greet(
    stream: &mut TcpStream,
    users: &BTreeMap<&'static str, User>,
) -> io::Result<Option<User>> {
    let mut magic = [0; 4];
    stream.read_exact(&mut magic)?;
    if magic != MAGIC {
        let why = "ERROR: Received an unsupported protocol version. This port is for RethinkDB queries.\n\0";
        stream.write_all(why.as_bytes())?;
        return Ok(None);
    }
    let hello = json!({
        "success": true, "min_protocol_version": 0, "max_protocol_version": 0,
        "server_version": "2.4.0",
    });
    say(stream, hello)?;
    let first = hear(stream)?;
    if first["protocol_version"] != 0 || first["authentication_method"] != "SCRAM-SHA-256" {
        return refuse(stream, 1, "Unsupported protocol version or method");
    }
    let first = first["authentication"].as_str().unwrap_or_default();
    let Some(bare) = first.strip_prefix("n,,") else {
        return refuse(stream, 13, "Channel binding is not supported");
    };
    let name = part(bare, "n").replace("=2C", ",").replace("=3D", "=");
    let Some(user) = users.get(name.as_str()) else {
        return refuse(stream, 17, "Unknown user");
    };
    let nonce = format!("{}double", part(bare, "r"));
    let challenge = format!("r={nonce},s={},i={ROUNDS}", BASE64.encode(SALT));
    say(
        stream,
        json!({"success": true, "authentication": challenge}),
    )?;
    let last = hear(stream)?;
    let last = last["authentication"].as_str().unwrap_or_default();
    let unproved = last.split(",p=").next().unwrap_or_default();
    let message = format!("{bare},{challenge},{unproved}");
    let salted: [u8; 32] =
        pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(user.password.as_bytes(), SALT, ROUNDS);
    let client = keyed(&salted, "Client Key");
    let signature = keyed(&Sha256::digest(&client), &message);
    let proof: Vec<u8> = client.iter().zip(signature).map(|(a, b)| a ^ b).collect();
    if part(last, "r") != nonce || part(last, "p") != BASE64.encode(proof) {
        return refuse(stream, 12, "Wrong password");
    }
    let server = keyed(&keyed(&salted, "Server Key"), &message);
    let proof = format!("v={}", BASE64.encode(server));
    say(stream, json!({"success": true, "authentication": proof}))?;
    Ok(Some(user.clone()))
}
