# Sourced by up.sh: a CA, a certificate and a kubeconfig for each component.
new_key() { openssl ecparam -genkey -name prime256v1 -noout -out "$1"; }

# cert NAME SUBJECT USAGE [SAN]
cert() {
  new_key "$1.key"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
  { echo "extendedKeyUsage=$3"; echo "keyUsage=critical,digitalSignature"; [ -z "${4:-}" ] || echo "subjectAltName=$4"; } >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
}

# kubeconfig NAME: for the certificate of that name
kubeconfig() {
  cat >"$RUN/$1.kubeconfig" <<X
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://$CP_IP:6443", certificate-authority: $PKI/ca.crt}}]
users: [{name: user, user: {client-certificate: $PKI/$1.crt, client-key: $PKI/$1.key}}]
contexts: [{name: lab, context: {cluster: lab, user: user}}]
current-context: lab
X
}

certificates() (
  mkdir -p "$PKI" && cd "$PKI"
  new_key ca.key
  openssl req -x509 -new -key ca.key -subj /CN=lab-ca -days 30 -out ca.crt -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
  names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
  cert apiserver /CN=kube-apiserver serverAuth "IP:127.0.0.1,IP:10.96.0.1,IP:$CP_IP,$names"
  cert kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
  cert admin /O=system:masters/CN=admin clientAuth
  cert kube-controller-manager /CN=system:kube-controller-manager clientAuth
  cert kube-scheduler /CN=system:kube-scheduler clientAuth
  cert kube-proxy /CN=system:kube-proxy clientAuth
  for n in $NODES; do cert "$n" "/O=system:nodes/CN=system:node:$n" clientAuth; done
  openssl genrsa -out sa.key 2048 2>/dev/null
  openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
  for name in admin kube-controller-manager kube-scheduler kube-proxy $NODES; do kubeconfig "$name"; done
)
