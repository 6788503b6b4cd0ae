#!/bin/sh
# Makes an authority, a certificate for the links of each node, and one for clients to try things with.
#
#   deploy/certificates.sh FOLDER HOST NODE...
#
# A node whose name begins with `front` gets no right to be a backend. What is there already stays; keep ca.key away
# from the nodes.
set -eu

if [ $# -lt 3 ]; then
    echo "usage: $0 FOLDER HOST NODE..." >&2
    exit 2
fi
folder=$1
host=$2
shift 2
umask 077
mkdir -p "$folder"
cd "$folder"

if [ ! -e ca.key ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 730 \
        -subj "/CN=Rookery cluster" -keyout ca.key -out ca.pem 2>/dev/null
fi

for node in "$@"; do
    [ ! -e "$node/node.pem" ] || continue
    case $node in
        front*) roles="DNS:frontend.rookery-cluster" ;;
        back*) roles="DNS:backend.rookery-cluster" ;;
        *) roles="DNS:frontend.rookery-cluster,DNS:backend.rookery-cluster" ;;
    esac
    mkdir -p "$node"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
        -subj "/CN=$node" -keyout "$node/node.key" -out "$node/node.csr" 2>/dev/null
    printf '%s\n' "subjectAltName=DNS:rookery-cluster,$roles" \
        "extendedKeyUsage=serverAuth,clientAuth" >"$node/node.ext"
    openssl x509 -req -in "$node/node.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 730 \
        -extfile "$node/node.ext" -out "$node/node.pem" 2>/dev/null
    rm "$node/node.csr" "$node/node.ext"
    cp ca.pem "$node/ca.pem"
done

if [ ! -e clients.key ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 \
        -subj "/CN=$host" -addext "subjectAltName=DNS:$host" -keyout clients.key -out clients.pem 2>/dev/null
fi
echo "certificates of $* and of $host are in $folder"
