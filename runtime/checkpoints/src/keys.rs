//! age's X25519 recipients and identities, from the command line and from files.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use age::DecryptError;
use age::stream::{StreamReader, StreamWriter};
use age::x25519::{Identity, Recipient};

use crate::error::{Error, Result};

/// No file of recipients or identities is larger.
const SIZE_MAX: u64 = 1 << 20;

/// Who can open what is sealed.
#[derive(Debug)]
pub struct Recipients(Vec<Recipient>);

impl Recipients {
    /// Each is an `age1…` recipient, or a file with one a line and comments after `#`.
    pub fn parse(named: &[String]) -> Result<Self> {
        let mut all = Vec::new();
        for text in named {
            if text.starts_with("age1") {
                let reason = || Error::Invalid(format!("{text:?} is no age recipient"));
                all.push(text.parse().map_err(|_| reason())?);
                continue;
            }
            let content = read_small(Path::new(text))?;
            for (number, line) in lines(&content) {
                // It may be a secret by mistake: no error shows it.
                let one = line.parse::<Recipient>();
                let reason = || format!("line {number} is no age recipient");
                all.push(one.map_err(|_| Error::malformed(text, reason()))?);
            }
        }
        if all.is_empty() {
            return Err(Error::Invalid("no recipient to encrypt to".to_owned()));
        }
        // Whatever the order in which they are named, it is the same set.
        all.sort_by_cached_key(ToString::to_string);
        all.dedup_by_key(|one| one.to_string());
        Ok(Self(all))
    }

    /// Tells one set of recipients from another.
    pub(crate) fn fingerprint(&self) -> Vec<u8> {
        let names: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        names.join("\n").into_bytes()
    }

    /// What is written into the result is sealed for all recipients; it has to be finished.
    pub(crate) fn seal<W: Write>(&self, output: W) -> Result<StreamWriter<W>> {
        let all = self.0.iter().map(|one| one as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(all)
            .map_err(|e| Error::Invalid(format!("cannot encrypt: {e:?}")))?;
        encryptor.wrap_output(output).map_err(Error::os("seal"))
    }
}

/// Who opens.
#[derive(Default)]
pub struct Identities(Vec<Identity>);

impl Identities {
    /// Reads files as `age-keygen` writes them.
    pub fn read(files: &[impl AsRef<Path>]) -> Result<Self> {
        let mut all = Vec::new();
        for file in files {
            let content = read_small(file.as_ref())?;
            let before = all.len();
            for (number, line) in lines(&content) {
                // The line is a secret: no error may show it.
                let name = file.as_ref().display().to_string();
                let reason = || format!("line {number} is no age identity");
                let identity = line.parse::<Identity>();
                all.push(identity.map_err(|_| Error::malformed(name, reason()))?);
            }
            if all.len() == before {
                let name = file.as_ref().display().to_string();
                return Err(Error::malformed(name, "no age identity in this file"));
            }
        }
        Ok(Self(all))
    }

    /// What `input` holds, unless it was sealed for others or its head is damaged; what follows is
    /// verified as it is read, its end too.
    pub(crate) fn open<R: Read>(&self, what: &str, input: R) -> Result<StreamReader<BufReader<R>>> {
        if self.0.is_empty() {
            return Err(Error::Invalid(format!(
                "{what} is sealed: an --identity is needed"
            )));
        }
        let all = self.0.iter().map(|one| one as &dyn age::Identity);
        age::Decryptor::new_buffered(BufReader::new(input))
            .and_then(|decryptor| decryptor.decrypt(all))
            .map_err(|error| Error::malformed(what, reason(&error)))
    }
}

/// age's own texts are looked up in a list of languages, which not every build of it finds.
fn reason(error: &DecryptError) -> String {
    match error {
        DecryptError::NoMatchingKeys => "sealed for others: no identity fits".to_owned(),
        DecryptError::Io(e) => format!("its head cannot be read: {e}"),
        DecryptError::InvalidHeader | DecryptError::UnknownFormat => "not an age file".to_owned(),
        _ => "its head is not what was written".to_owned(),
    }
}

/// Lines that are neither empty nor comments, and their numbers.
fn lines(content: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = content.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(index, line)| (index + 1, line))
}

fn read_small(path: &Path) -> Result<String> {
    let size = fs::metadata(path).map_err(Error::io("open", path))?.len();
    if size > SIZE_MAX {
        return Err(Error::malformed(
            path.display().to_string(),
            "too large for a file of keys",
        ));
    }
    fs::read_to_string(path).map_err(Error::io("read", path))
}
