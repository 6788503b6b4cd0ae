-- As in the file that Debian ships, but for the ports, no bounds, registration, the generational collector, and without
-- links to other servers.
daemonize = false
run_as_root = true
pidfile = "@FOLDER@/prosody.pid"
data_path = "@FOLDER@/data"
certificates = "@FOLDER@/.."
log = { info = "@FOLDER@/prosody.log" }
gc = { mode = "generational" }
storage = "internal"
authentication = "internal_hashed"
interfaces = { "127.0.0.1" }
c2s_ports = { @STARTTLS@ }
c2s_direct_tls_ports = { @DIRECT@ }
c2s_require_encryption = true
allow_registration = true
modules_enabled = {
	"disco"; "roster"; "saslauth"; "tls";
	"blocklist"; "bookmarks"; "carbons"; "pep"; "private"; "smacks"; "vcard4"; "vcard_legacy";
	"csi_simple"; "ping"; "register"; "time"; "version"; "posix"; @ARCHIVE@
}
modules_disabled = { "s2s" }
ssl = { certificate = "@FOLDER@/../cert.pem", key = "@FOLDER@/../key.pem" }
c2s_direct_tls_ssl = { certificate = "@FOLDER@/../cert.pem", key = "@FOLDER@/../key.pem" }
VirtualHost "localhost"
