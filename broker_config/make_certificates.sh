#!/bin/sh
# Makes a certificate authority (once), a server certificate and one client certificate for each identity.
# Usage: make_certificates.sh DIRECTORY SERVER_NAME IDENTITY...
set -eu
umask 077

directory=$1
server=$2
shift 2
mkdir -p "$directory"
cd "$directory"

new_key() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key" 2>/dev/null
}

sign() { # NAME COMMON_NAME DAYS EXTENSIONS
    new_key "$1"
    printf 'basicConstraints=critical,CA:false\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n%s\n' "$4" >"$1.ext"
    openssl req -new -key "$1.key" -subj "/CN=$2" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days "$3" -extfile "$1.ext" -out "$1.crt" 2>/dev/null
    rm "$1.ext"
}

if [ ! -e ca.key ]; then
    new_key ca
    openssl req -x509 -new -key ca.key -days 3650 -subj "/CN=Idlewheel fleet authority" \
        -addext keyUsage=critical,keyCertSign,cRLSign -out ca.crt
fi

# A name that is all digits and dots is an address.
case $server in
*[!0-9.]*) alternative="DNS:$server" ;;
*) alternative="IP:$server" ;;
esac
sign server "$server" 365 "subjectAltName=$alternative
extendedKeyUsage=serverAuth"

for identity in "$@"; do
    sign "$identity" "$identity" 365 "extendedKeyUsage=clientAuth"
done
