#!/usr/bin/env bash
# A stand-in for gcloud that records its arguments. $LOOKS has lines of `ARGUMENTS => OUTPUT`: a
# call whose arguments begin with ARGUMENTS prints OUTPUT. Otherwise the project is empty, except
# for what earlier calls have made. A call whose arguments begin with $FAIL_AT fails.
printf '%s\x1f' "$@" >>"$CALLS"
printf '\x1e' >>"$CALLS"
while read -r look; do
  if [[ "$* " == "${look%% => *} "* ]]; then
    printf '%b\n' "${look#* => }"
    exit
  fi
done <<<"${LOOKS-}"
if [[ ${FAIL_AT-} && $* == "$FAIL_AT"* ]]; then
  echo 'ERROR: (gcloud) it broke here' >&2
  exit 1
fi
case $* in
  'projects describe'*) echo 123456789012 ;;
  'functions describe'*)
    grep -q $'functions\x1fdeploy' "$CALLS" || { echo 'NOT_FOUND' >&2; exit 1; }
    echo version ACTIVE https://relay.example today ;;
  'secrets versions list'*)
    grep -q $'secrets\x1fversions\x1fadd' "$CALLS" || { echo 'NOT_FOUND' >&2; exit 1; }
    echo 1 ENABLED ;;
  *' describe '* | *get-iam-policy* | *'versions access'*)
    echo 'ERROR: NOT_FOUND: there is none' >&2
    exit 1 ;;
esac
