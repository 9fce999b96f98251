#!/usr/bin/env bash
# Stands for gcloud: writes down what it is called with, finds nothing but what it deployed, and
# fails at the call that $FAIL_AT names by its number among those that change something.
printf '%s\x1f' "$@" >>"$CALLS"
printf '\x1e' >>"$CALLS"
case $* in
  *' describe '* | *' list '* | *get-iam-policy* | *'versions access'* | *print-access-token*)
    case $* in
      'projects describe'*) echo 123456789012 ;;
      'functions describe'*serviceConfig.uri*)
        grep -q $'functions\x1fdeploy' "$CALLS" || { echo 'NOT_FOUND' >&2; exit 1; }
        echo https://relay.example ;;
      'secrets versions list'*) echo 1 ;;
      *' list '*) ;;
      *) echo 'ERROR: NOT_FOUND: there is none' >&2; exit 1 ;;
    esac
    ;;
  *)
    echo x >>"$CALLS.changes"
    if [[ ${FAIL_AT-} == $(wc -l <"$CALLS.changes" | tr -d ' ') ]]; then
      echo "ERROR: (gcloud) it broke here" >&2
      exit 1
    fi
    ;;
esac
