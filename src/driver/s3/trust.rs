//! Whom encrypted connections to the service trust.

use crate::driver::web::connect::system_roots;
use crate::driver::{Error, ErrorKind, Result};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, pem::PemObject};

/// The system's certificates and those of `AWS_CA_BUNDLE`.
pub(super) fn roots() -> Result<RootCertStore> {
    let mut roots = system_roots();
    if let Some(path) = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()) {
        let wrong = |cause: rustls::pki_types::pem::Error| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "cannot read the certificates that AWS_CA_BUNDLE names in {path:?}: {cause}"
                ),
            )
        };
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(&path).map_err(wrong)? {
            roots.add_parsable_certificates([certificate.map_err(wrong)?]);
        }
        if roots.len() == before {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("there is no certificate in {path:?}, which AWS_CA_BUNDLE names"),
            ));
        }
    }
    if roots.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "there are no certificates to trust: install ca-certificates, or let AWS_CA_BUNDLE name a file of them",
        ));
    }
    Ok(roots)
}
