#!/usr/bin/env bash
# Asks a `kiln serve` of the small model what its OpenAPI document allows and what it forbids, by Schemathesis:
#
#   pip install schemathesis==4.32.5
#   tests/clients/schemathesis.sh target/debug/kiln [MORE FLAGS OF schemathesis run]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kiln=$1
shift
work=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

# Limits that let every run end soon.
cat >"$work/models.yaml" <<YAML
models:
  - name: shapes
    bundle: $here/../../models/shapes
    limits: {side: 128, pixels: 16384, steps: 3, pictures: 2, prompt_bytes: 512}
YAML
key=$("$kiln" serve --new-key schemathesis 2>&1 >"$work/keys" | grep -o 'kiln-[0-9a-f]*')
"$kiln" serve "$work/models.yaml" --keys "$work/keys" --listen 127.0.0.1:0 --state "$work/state" 2>"$work/log" &
server=$!
until address=$(grep -o 'http://127.0.0.1:[0-9]*' "$work/log"); do
    kill -0 "$server" || { cat "$work/log" >&2; exit 1; }
    sleep 0.2
done

# What the document cannot say (a picture that is none, more pixels than the model draws) is refused though it is
# allowed: the check `fields_as_documented` of the hooks tells that from what it can say. Schemathesis speaks no gRPC.
cd "$work"
SCHEMATHESIS_HOOKS=$here/schemathesis_hooks.py schemathesis run "$address/openapi.json" --no-color \
    --phases examples,coverage,fuzzing --exclude-checks positive_data_acceptance \
    --header "Authorization: Bearer $key" --exclude-path-regex '^/inference\.' \
    --request-timeout 60 --continue-on-failure --generation-deterministic --max-examples 20 "$@"
