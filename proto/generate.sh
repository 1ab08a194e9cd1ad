#!/bin/sh
# Writes the generated code beside the .proto files: sh proto/generate.sh PYTHON_WITH_GRPCIO_TOOLS
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$1" -m grpc_tools.protoc -Iembedmux/proto=proto --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
    $(cd proto && for file in *.proto; do echo "embedmux/proto/$file"; done)
cp "$out"/embedmux/proto/* proto/
