#!/usr/bin/env bash
# Sets up the relay in a Google Cloud project, or updates it. Each step looks at what exists,
# changes what differs, and prints what it did. After a failure the same command can be run again.

set -euo pipefail
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || {
  echo "deploy.sh needs bash 4.4 or newer, this is $BASH_VERSION." >&2
  exit 2
}
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'HELP'
Usage: ./deploy.sh --project PROJECT --region REGION [OPTION]...

Sets up the webhook relay on Google Cloud, or updates it: APIs, service accounts, Firestore, the
Svix token's secret, topics, the function, the push subscription, the hourly reconciliation,
metrics, alerts, dashboard.

What to do (default: deploy)
  --status              one page: does the relay deliver, how many events wait, how many are
                        parked, when did the last reconciliation run
  --redrive             push the dead-letter subscription's messages to the function
  --redrive-stop        stop pushing them
  --teardown            remove what this script created, except Firestore's data, the token's
                        secret, the topic and the enabled APIs. Asks for confirmation first
  --dry-run             print the commands that would change something, and change nothing.
                        Also works without a login; then everything is assumed to be missing
  --yes                 do not ask for confirmation

Where
  --project PROJECT     required
  --region REGION       of the function and of its schedule; required
  --name NAME           of the function; other names begin with it      (webhook-relay)
  --topic TOPIC         to which the platform publishes; created if missing (events)
  --database DATABASE   Firestore database                              ((default))
  --firestore-location LOCATION
                        of a new database, such as eur3 or nam5         (the region)

Svix
  --svix-rate N         calls a second that the Svix plan allows, at least 12; the budget and the
                        instances are calculated from it                (unknown)
  --token-stdin         read the token from standard input and store it in the secret
  --secret SECRET       the secret that holds the token                 (svix-token)
  --svix-url URL        a self-hosted Svix                              (by the token's region)
  --no-create-applications
                        park events of projects that Svix does not know
  --event-tags PATHS    comma-separated paths into the event whose values become tags (data.id)

The function (--budget, --concurrency and --max-instances are calculated if you leave them out;
values that do not fit together are refused)
  --budget SECONDS      the longest that a request may take, 30 to 540  (240)
  --concurrency N       requests at a time in one instance, 1 to 1000   (800)
  --max-instances N     (4)
  --min-instances N     (1)
  --cpu N               processors of an instance                       (1)
  --memory SIZE         of an instance, such as 512Mi or 1Gi            (512Mi)
  --channel CHANNEL     notification channel of the alerts; may be repeated; without it the alerts
                        keep their channels
  -h, --help            this text
HELP
}

# -- options

readonly RUNTIME=python313 # CI runs every suite on this version
ACTION=deploy DRY_RUN='' YES='' TOKEN_STDIN=''
PROJECT='' REGION='' NAME=webhook-relay TOPIC=events DATABASE='(default)' LOCATION=''
SVIX_RATE='' SECRET=svix-token SVIX_URL='' CREATE_APPLICATIONS=true EVENT_TAGS=data.id
BUDGET='' CONCURRENCY='' MAX_INSTANCES='' MIN_INSTANCES=1 CPU=1 MEMORY=512Mi CHANNELS=''

wrong_usage() {
  printf '%s\nTry ./deploy.sh --help\n' "$1" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --status | --redrive | --redrive-stop | --teardown) ACTION=${1#--} ;;
    --dry-run) DRY_RUN=1 ;;
    --yes) YES=1 ;;
    --token-stdin) TOKEN_STDIN=1 ;;
    --no-create-applications) CREATE_APPLICATIONS=false ;;
    -h | --help) usage && exit 0 ;;
    --*)
      (($# > 1)) || wrong_usage "$1 is not an option, or its value is missing."
      case $1 in
        --project) PROJECT=$2 ;; --region) REGION=$2 ;; --name) NAME=$2 ;; --topic) TOPIC=$2 ;;
        --database) DATABASE=$2 ;; --firestore-location) LOCATION=$2 ;; --secret) SECRET=$2 ;;
        --svix-rate) SVIX_RATE=$2 ;; --svix-url) SVIX_URL=$2 ;; --event-tags) EVENT_TAGS=$2 ;;
        --budget) BUDGET=$2 ;; --concurrency) CONCURRENCY=$2 ;; --max-instances) MAX_INSTANCES=$2 ;;
        --min-instances) MIN_INSTANCES=$2 ;; --cpu) CPU=$2 ;; --memory) MEMORY=$2 ;;
        --channel) CHANNELS+=${CHANNELS:+,}$2 ;;
        *) wrong_usage "There is no option $1." ;;
      esac
      shift
      ;;
    *) wrong_usage "$1 is not an option." ;;
  esac
  shift
done

[[ $PROJECT ]] || wrong_usage '--project is missing.'
[[ $REGION ]] || wrong_usage '--region is missing.'
# Refuses a value that does not match, unless it is empty.
require_match() { # OPTION VALUE PATTERN WHAT
  [[ -z $2 || $2 =~ ^($3)$ ]] || wrong_usage "--$1 is $2: it must be $4."
}
# Refuses a value that is not in the range, unless it is empty.
require_whole_number() { # OPTION VALUE LOW HIGH
  require_match "$1" "$2" '0|[1-9][0-9]{0,5}' "a whole number from $3 to $4"
  [[ -z $2 ]] || (($2 >= $3 && $2 <= $4)) || wrong_usage "--$1 is $2: it must be from $3 to $4."
}
require_match project "$PROJECT" '[a-z][a-z0-9-]{4,28}[a-z0-9]' "a project's id"
require_match region "$REGION" '[a-z]+-[a-z]+[0-9]+' 'a region, such as europe-west1'
require_match firestore-location "$LOCATION" '[a-z]+(-[a-z]+)?[0-9]+' 'a region, or eur3 or nam5'
require_match name "$NAME" '[a-z][a-z0-9-]{0,17}[a-z0-9]' \
  "2 to 19 characters of a-z, 0-9 and -, beginning with a letter (the service accounts' names contain it)"
require_match topic "$TOPIC" '[a-zA-Z][a-zA-Z0-9._~+%-]{2,200}' "a topic's name"
[[ $TOPIC != goog* ]] || wrong_usage "--topic is $TOPIC: names that begin with goog are Google's."
require_match secret "$SECRET" '[a-zA-Z0-9_-]{1,255}' "a secret's name"
require_match svix-url "$SVIX_URL" 'https://[^[:space:];]+' 'an https URL'
require_match event-tags "$EVENT_TAGS" '[^[:space:];]+' 'comma-separated paths'
require_match memory "$MEMORY" '[1-9][0-9]{0,4}(Mi|Gi)' 'a size such as 512Mi or 1Gi'
require_whole_number svix-rate "$SVIX_RATE" 1 100000
require_whole_number budget "$BUDGET" 30 540
require_whole_number concurrency "$CONCURRENCY" 1 1000
require_whole_number max-instances "$MAX_INSTANCES" 1 1000
require_whole_number cpu "$CPU" 1 8

# -- sizes

# Pub/Sub has up to 3,000 pushes outstanding at a subscriber that is slow to answer
# (https://cloud.google.com/pubsub/docs/push). After a nack it pushes all events more slowly. So the
# instances must have room for 3,000 requests, and the last of these must get its turn within the
# budget. An instance may get only half of its share of Svix's rate, hence the factor 2:
#
#   max instances x concurrency >= 3,000        budget - 20 s >= 2 x 3,000 / rate
readonly PUSHES=3000
readonly ATTEMPT_SECONDS=20     # the longest that an attempt takes (relay/config.py)
readonly CALLS_PER_INSTANCE=200 # calls to Svix a second that one processor can easily make
readonly MIN_BODIES_MIB=48      # three of Pub/Sub's largest pushes, 14 MB each, and small ones
readonly DEFAULT_BUDGET=240     # seconds
readonly DEFAULT_CONCURRENCY=800

divide_up() { echo $((($1 + $2 - 1) / $2)); }
max() { echo $(($1 > $2 ? $1 : $2)); }

if [[ $SVIX_RATE ]]; then
  needed=$((ATTEMPT_SECONDS + $(divide_up $((2 * PUSHES)) "$SVIX_RATE")))
  ((needed <= 540)) || wrong_usage "$SVIX_RATE calls a second are too few for a push \
subscription. Pub/Sub may push 3,000 events at once, and the last of them would need an ack deadline \
of $((needed + 60)) s. Pub/Sub allows 600 s at most. Use a Svix plan that allows at least 12 calls a \
second, or a worker that pulls only as many events as it can send."
  : "${BUDGET:=$(max "$DEFAULT_BUDGET" "$needed")}"
  ((BUDGET >= needed)) || wrong_usage "--budget $BUDGET is too short: at $SVIX_RATE calls a second \
the last of 3,000 events needs $needed s."
fi
: "${BUDGET:=$DEFAULT_BUDGET}"
: "${CONCURRENCY:=$(max "$DEFAULT_CONCURRENCY" "$(divide_up "$PUSHES" "${MAX_INSTANCES:-$PUSHES}")")}"
: "${MAX_INSTANCES:=$(max "$(divide_up "$PUSHES" "$CONCURRENCY")" "$(divide_up "${SVIX_RATE:-1}" "$CALLS_PER_INSTANCE")")}"
require_whole_number min-instances "$MIN_INSTANCES" 0 "$MAX_INSTANCES"
((CONCURRENCY <= 1000 && MAX_INSTANCES * CONCURRENCY >= PUSHES)) || wrong_usage "There is no room \
for the 3,000 events that Pub/Sub may push at once: --max-instances ($MAX_INSTANCES) times \
--concurrency (at most 1000) must be at least 3,000."
mebibytes=${MEMORY%?i}
[[ $MEMORY != *Gi ]] || mebibytes=$((mebibytes * 1024))
# 128 MiB are for the process, and 160 KiB for each request. Up to four copies of a body are in
# memory at once, so each MiB of bodies needs 4096 KiB.
BODIES=$(((mebibytes * 1024 - 128 * 1024 - CONCURRENCY * 160) / 4096))
((BODIES >= MIN_BODIES_MIB)) || wrong_usage "--memory $MEMORY is too small for $CONCURRENCY requests: \
$((MIN_BODIES_MIB * 4 + 128 + $(divide_up $((CONCURRENCY * 160)) 1024)))Mi or more."
# The order of the times must be: attempt < budget < function's timeout < ack deadline.
readonly BUDGET CONCURRENCY MAX_INSTANCES BODIES FUNCTION_TIMEOUT=$((BUDGET + 30)) ACK_DEADLINE=$((BUDGET + 60))

readonly FUNCTION=$NAME
readonly SUBSCRIPTION=$NAME-push
readonly DEAD_LETTER_TOPIC=$NAME-dead-letters
readonly DEAD_LETTER_SUBSCRIPTION=$NAME-dead-letters
readonly JOB=$NAME-reconcile
readonly ACCOUNTS=iam.gserviceaccount.com
readonly FUNCTION_ACCOUNT=$NAME@$PROJECT.$ACCOUNTS
readonly PUSH_ACCOUNT=$NAME-push@$PROJECT.$ACCOUNTS
readonly RECONCILE_ACCOUNT=$NAME-reconcile@$PROJECT.$ACCOUNTS
readonly APIS=(artifactregistry cloudbuild cloudfunctions cloudscheduler firestore iam logging
  monitoring pubsub run secretmanager)

# -- helpers: print, look up, change

STEP='' CHANGED=0 UNCHECKED=0 OFFLINE='' FOUND=''
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

step() {
  STEP=$1
  printf '%s\n' "== $1"
}

print_unchanged() { printf '   unchanged: %s\n' "$1"; }

failed() { # MESSAGE: prints it with advice, and exits
  printf '\nFailed at the step "%s".\n%s\n' "$STEP" "$1" >&2
  [[ $DRY_RUN ]] || ((CHANGED == 0)) || echo 'The changes made so far are kept.' >&2
  echo 'Fix this, then run the same command again.' >&2
  case $1 in
    *PERMISSION_DENIED* | *'does not have permission'*)
      echo "The account that \`gcloud auth list\` shows needs roles/owner in $PROJECT, or the admin role for this step." >&2 ;;
    *BILLING* | *billing*) echo "Link a billing account to $PROJECT." >&2 ;;
    *'gcloud auth login'*) ;; # gcloud's own message says what to do
    *'currently select an active account'* | *'active account selected'* | *UNAUTHENTICATED*)
      echo 'Run gcloud auth login.' >&2 ;;
  esac
  exit 1
}

# Looks something up with gcloud. If it exists, this succeeds and sets $FOUND to gcloud's output. If
# a dry run can't look it up, it says so and assumes that the thing is missing.
look() { # ARGUMENTS OF GCLOUD...
  local words=$*
  FOUND=''
  if [[ ! $OFFLINE ]]; then
    if FOUND=$(gcloud "$@" --project="$PROJECT" --quiet </dev/null 2>"$WORK/said"); then return 0; fi
    # gcloud exits with 1 both when something does not exist and when the network is down.
    if grep -Eqi 'NOT_FOUND|not found|does not exist|status=\[404\]' "$WORK/said" &&
      ! grep -Fq 'command not found' "$WORK/said"; then return 1; fi
    [[ $DRY_RUN ]] || failed "$(<"$WORK/said")"
    if ! grep -Eq 'PERMISSION_DENIED|does not have permission' "$WORK/said"; then
      OFFLINE=1 # the next call would fail too, perhaps only after a minute
      printf '   %s\n' "gcloud says: $(grep -m 1 . "$WORK/said")" \
        'Nothing more is checked: all the rest is assumed to be missing.'
    fi
  fi
  UNCHECKED=$((UNCHECKED + 1))
  printf '   not checked: gcloud %s\n' "${words%% --f*}"
  return 1
}

among() { # WORD: whether $FOUND has a line that equals it
  grep -Fqx -- "$1" <<<"$FOUND"
}

# Runs gcloud and prints what it did. A dry run only prints the command.
change() { # WHAT ARGUMENTS OF GCLOUD...
  local words=$1
  shift
  CHANGED=$((CHANGED + 1))
  if [[ $DRY_RUN ]]; then
    printf '   would run: gcloud%s\n' "$(printf ' %q' "$@" --project="$PROJECT" --quiet)"
    return
  fi
  gcloud "$@" --project="$PROJECT" --quiet </dev/null >"$WORK/said" 2>&1 || failed "$(<"$WORK/said")"
  printf '   %s\n' "$words"
}

# Creates something, unless the list in $FOUND has its name.
create_if_missing() { # NAME WHAT ARGUMENTS OF GCLOUD...
  if among "$1"; then print_unchanged "$2"; else change "created $2" "${@:3}"; fi
}

grant() { # ROLE GROUP-OF-GCLOUD NAME MEMBER...: grants it to each member that does not have it
  local role=$1 group name=$3 member where=() held=''
  read -ra group <<<"$2"
  shift 3
  [[ ${group[*]} != 'run services' ]] || where=(--region="$REGION")
  if look "${group[@]}" get-iam-policy "$name" "${where[@]}" --flatten='bindings[].members' \
    --format='value(bindings.role,bindings.members)'; then held=$FOUND; fi
  for member in "$@"; do
    if grep -Fqx "$role"$'\t'"serviceAccount:$member" <<<"$held"; then
      print_unchanged "$role for $member"
      continue
    fi
    case ${group[*]} in
      'run services')
        change "granted $role to $member" functions add-invoker-policy-binding "$name" \
          --region="$REGION" --member="serviceAccount:$member" ;;
      *)
        [[ ${group[*]} != projects ]] || where=(--condition=None)
        change "granted $role to $member" "${group[@]}" add-iam-policy-binding "$name" \
          --member="serviceAccount:$member" --role="$role" "${where[@]}" ;;
    esac
  done
}

# -- the steps

print_sizes() {
  step 'Sizes'
  printf '   %s\n' "$MAX_INSTANCES instances x $CONCURRENCY requests: room for the 3,000 events that Pub/Sub may push at once" \
    "a request waits up to $BUDGET s: enough for a Svix limit of $(divide_up $((2 * PUSHES)) $((BUDGET - ATTEMPT_SECONDS))) or more calls a second" \
    "$MEMORY of memory: $BODIES MiB of large bodies at a time"
  [[ $SVIX_RATE ]] || echo '   Give --svix-rate if the plan allows fewer calls, or more than 800 a second.'
}

enable_apis() {
  step 'APIs'
  local missing=() api
  look services list --enabled --format='value(config.name)' || true
  for api in "${APIS[@]}"; do
    among "$api.googleapis.com" || missing+=("$api.googleapis.com")
  done
  if ((${#missing[@]})); then
    change "enabled ${missing[*]}" services enable "${missing[@]}"
  else
    print_unchanged "all ${#APIS[@]} are enabled"
  fi
}

make_accounts() {
  step 'Service accounts'
  look iam service-accounts list --format='value(email)' || true
  make_account() { create_if_missing "$1" "$1" iam service-accounts create "${1%%@*}" --display-name="$2"; }
  make_account "$FUNCTION_ACCOUNT" 'The webhook relay: Firestore and one secret'
  make_account "$PUSH_ACCOUNT" 'Pub/Sub pushing to the webhook relay'
  make_account "$RECONCILE_ACCOUNT" 'Cloud Scheduler calling the webhook relay'
}

make_database() {
  step 'Firestore'
  if ! look firestore databases describe --database="$DATABASE" \
    --format="value[separator=' '](type,locationId)"; then
    change "created the database $DATABASE" firestore databases create --database="$DATABASE" \
      --location="${LOCATION:-$REGION}" --type=firestore-native
  elif [[ $FOUND != FIRESTORE_NATIVE* ]]; then
    failed "The database $DATABASE is in Datastore mode: name another one with --database."
  elif [[ $LOCATION && $FOUND != *" $LOCATION" ]]; then
    failed "The database $DATABASE is in ${FOUND##* }, and a database can't be moved: name another one with --database, or leave out --firestore-location."
  else
    print_unchanged "the database $DATABASE, in ${FOUND##* }"
  fi
  grant roles/datastore.user projects "$PROJECT" "$FUNCTION_ACCOUNT"
}

# Sets $FOUND to what is indexed and what expires: lines as in deploy/firestore-indexes.txt, each
# with its state after it.
look_at_indexes() {
  local rows='' group name count state fields
  look firestore indexes fields list --database="$DATABASE" --format="csv[no-heading,separator=' '](
    name.segment(-3),name.basename(),indexConfig.indexes.len(),indexConfig.indexes[0].state)" || true
  while read -r group name count state; do
    case $count in
      '' | 0) rows+="$group unindexed $name: READY"$'\n' ;;
      *) rows+="$group indexed $name: $state"$'\n' ;;
    esac
  done <<<"$FOUND"
  look firestore fields ttls list --database="$DATABASE" --format="csv[no-heading,separator=' '](
    name.segment(-3),name.basename(),ttlConfig.state)" || true
  while read -r group name state; do
    rows+="$group ttl $name: $state"$'\n'
  done <<<"$FOUND"
  look firestore indexes composite list --database="$DATABASE" --format="csv[no-heading,separator=' '](
    name.segment(-3),state,fields[].fieldPath.list(separator=' '))" || true
  while read -r group state fields; do
    rows+="$group composite ${fields% __name__}: $state"$'\n'
  done <<<"${FOUND//\"/}"
  FOUND=$rows
}

wanted_indexes() { sed -E '/^#/d; s/ +/ /g' deploy/firestore-indexes.txt; }

# Firestore takes minutes to build an index or to set up a TTL policy. This does not wait for it.
make_indexes() {
  step 'Indexes and expiry'
  local group kind fields words state command
  look_at_indexes
  while read -r group kind fields; do
    words="$group $kind $fields"
    state=$(sed -n "s/^${words//\*/\\*}: //p" <<<"$FOUND")
    case $state in
      READY | ACTIVE) print_unchanged "$words" ;;
      CREATING) printf '   being built: %s\n' "$words" ;;
      ?*) failed "$words is in the state $state: https://console.cloud.google.com/firestore" ;;
      '')
        case $kind in
          unindexed) command=(indexes fields update "$fields" --disable-indexes) ;;
          indexed) command=(indexes fields update "$fields" --index=order=ascending) ;;
          ttl) command=(fields ttls update "$fields" --enable-ttl) ;;
          composite)
            # shellcheck disable=SC2086 # one flag for each field
            read -ra command <<<"indexes composite create $(printf -- '--field-config=field-path=%s,order=ascending ' $fields)" ;;
        esac
        change "requested: $words" firestore "${command[@]}" --collection-group="$group" \
          --database="$DATABASE" --async ;;
    esac
  done < <(wanted_indexes)
}

# The token goes from standard input to a file that only this user can read, and from there to
# gcloud. It is never an argument and never printed.
store_token() {
  step 'The Svix token'
  newest_version() { # the newest version that is enabled: others may be disabled or destroyed
    look secrets versions list "$SECRET" --sort-by='~createTime' \
      --format="value[separator=' '](name.basename(),state)" &&
      SECRET_VERSION=$(awk 'tolower($2) == "enabled" {print $1; exit}' <<<"$FOUND")
  }
  SECRET_VERSION=''
  if newest_version; then
    print_unchanged "the secret $SECRET"
  else
    [[ $TOKEN_STDIN || $DRY_RUN ]] || failed "There is no secret $SECRET: give the token once, with --token-stdin."
    change "created the secret $SECRET" secrets create "$SECRET" --replication-policy=automatic
    [[ $TOKEN_STDIN ]] || echo '   needed: --token-stdin with the token on standard input, when it is not a dry run'
  fi
  if [[ $TOKEN_STDIN ]]; then
    (umask 077 && tr -d '[:space:]' >"$WORK/token")
    [[ -s $WORK/token ]] || failed 'Standard input held no token.'
    if [[ $SECRET_VERSION ]] && look secrets versions access "$SECRET_VERSION" --secret="$SECRET" &&
      [[ $FOUND == "$(<"$WORK/token")" ]]; then
      print_unchanged "the secret's version $SECRET_VERSION"
    else
      FOUND=''
      change 'stored a new version' secrets versions add "$SECRET" --data-file="$WORK/token"
      [[ $DRY_RUN ]] || newest_version
    fi
    FOUND=''
    rm -f "$WORK/token"
  fi
  [[ $SECRET_VERSION || $DRY_RUN ]] ||
    failed "The secret $SECRET has no version that is enabled: give the token with --token-stdin."
  grant roles/secretmanager.secretAccessor secrets "$SECRET" "$FUNCTION_ACCOUNT"
}

# Sets $SUBSCRIPTIONS to one line for each subscription, with the settings that matter. The first
# field is the name, the second the topic.
look_at_subscriptions() {
  look pubsub subscriptions list --format="csv[no-heading,separator=';'](
    name.basename(), topic.basename(), pushConfig.pushEndpoint, pushConfig.oidcToken.serviceAccountEmail,
    pushConfig.oidcToken.audience, ackDeadlineSeconds, retryPolicy.minimumBackoff,
    retryPolicy.maximumBackoff, messageRetentionDuration, deadLetterPolicy.deadLetterTopic.basename(),
    deadLetterPolicy.maxDeliveryAttempts, retainAckedMessages)" || true
  SUBSCRIPTIONS=$FOUND
}

subscription() { # NAME [FIELD]: its line, or one field of it
  local line
  line=$(grep -m 1 "^$1;" <<<"$SUBSCRIPTIONS") || return 1
  cut -d ';' -f "${2:-1-}" <<<"$line"
}

readonly RETRY=(--ack-deadline="$ACK_DEADLINE" --min-retry-delay=10s --max-retry-delay=600s)

make_topics() {
  step 'Topics'
  local name deadline
  look pubsub topics list --format='value(name.basename())' || true
  for name in "$TOPIC" "$DEAD_LETTER_TOPIC"; do
    create_if_missing "$name" "the topic $name" pubsub topics create "$name"
  done
  look_at_subscriptions
  # The dead-letter subscription is created before the push subscription, because a topic without a
  # subscription loses its messages.
  if subscription "$DEAD_LETTER_SUBSCRIPTION" >/dev/null; then
    print_unchanged "the subscription $DEAD_LETTER_SUBSCRIPTION"
  else
    change "created the subscription $DEAD_LETTER_SUBSCRIPTION" \
      pubsub subscriptions create "$DEAD_LETTER_SUBSCRIPTION" --topic="$DEAD_LETTER_TOPIC" \
      "${RETRY[@]}" --message-retention-duration=31d --expiration-period=never
  fi
  # An ack deadline must always be longer than the function's timeout. So it is raised before the
  # function is deployed, and lowered only afterwards (in `subscribe`).
  for name in "$SUBSCRIPTION" "$DEAD_LETTER_SUBSCRIPTION"; do
    deadline=$(subscription "$name" 6) || continue
    ((deadline >= ACK_DEADLINE)) ||
      change "raised the ack deadline of $name from $deadline to $ACK_DEADLINE s" \
        pubsub subscriptions update "$name" --ack-deadline="$ACK_DEADLINE"
  done
}

deploy_function() {
  step 'The function'
  local environment settings version
  environment="^;^GOOGLE_CLOUD_PROJECT=$PROJECT;FIRESTORE_DATABASE=$DATABASE"
  environment+=";REQUEST_BUDGET_SECONDS=$BUDGET;BODIES_MIB=$BODIES;EVENT_TAGS=$EVENT_TAGS"
  environment+=";CREATE_APPLICATIONS=$CREATE_APPLICATIONS${SVIX_URL:+;SVIX_SERVER_URL=$SVIX_URL}"
  settings=(--runtime="$RUNTIME" --entry-point=notifications --trigger-http
    --no-allow-unauthenticated --service-account="$FUNCTION_ACCOUNT" --cpu="$CPU"
    --memory="$MEMORY" --concurrency="$CONCURRENCY" --min-instances="$MIN_INSTANCES"
    --max-instances="$MAX_INSTANCES" --timeout="${FUNCTION_TIMEOUT}s"
    --set-env-vars="$environment" --set-secrets="SVIX_TOKEN=$SECRET:${SECRET_VERSION:-1}")
  # The deployed function carries a hash of its source and settings. The function is deployed again
  # only if the hash differs or the function is not active.
  version=$( (printf '%s\n' "${settings[@]}" && find main.py requirements.txt relay -type f \
    ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 cat) | git hash-object --stdin)
  if look_at_function && [[ $FOUND == "$version ACTIVE "* ]]; then
    print_unchanged "version ${version:0:12}"
  else
    change "deployed version ${version:0:12}" functions deploy "$FUNCTION" --gen2 \
      --region="$REGION" --source=. "${settings[@]}" --update-labels="relay-version=$version"
    [[ $DRY_RUN ]] || look_at_function
  fi
  grant roles/run.invoker 'run services' "$FUNCTION" "$PUSH_ACCOUNT" "$RECONCILE_ACCOUNT"
}

# Sets $FOUND to the function's version, state, URL and last update, and $PUSH to the flags of a
# subscription that pushes to it.
look_at_function() {
  URL=https://$FUNCTION.invalid # for a dry run before the first deployment
  if look functions describe "$FUNCTION" --v2 --region="$REGION" \
    --format="value[separator=' '](labels.relay-version,state,serviceConfig.uri,updateTime)"; then
    read -r _ _ URL _ <<<"$FOUND"
  fi
  # The push flags are always given together: an update with only one of them clears the others.
  # The audience is the service's root, because Cloud Run expects that. Pub/Sub's default is the
  # endpoint.
  PUSH=(--push-endpoint="$URL/notifications" --push-auth-service-account="$PUSH_ACCOUNT"
    --push-auth-token-audience="$URL")
  [[ $FOUND ]]
}

set_subscription() { # SUBSCRIPTION WANTED SETTINGS...: creates or updates it unless it is as wanted
  local name=$1 wanted="$1;$2" topic=${2%%;*} held
  shift 2
  if ! held=$(subscription "$name"); then
    change "created the subscription $name" pubsub subscriptions create "$name" --topic="$topic" "$@"
  elif [[ $held != "$name;$topic;"* ]]; then
    # If the subscription were recreated for the new topic, nothing would read the old topic.
    failed "$name reads the topic $(cut -d ';' -f 2 <<<"$held"), and a subscription's topic can't be changed: give that topic with --topic, or another name for the relay with --name."
  elif [[ $held == "$wanted" ]]; then
    print_unchanged "the subscription $name"
  else
    change "updated the subscription $name" pubsub subscriptions update "$name" "$@"
  fi
}

subscribe() {
  step 'The push subscription'
  local push="$URL/notifications;$PUSH_ACCOUNT;$URL" retry="$ACK_DEADLINE;10s;600s" redriving number agent
  look_at_subscriptions
  set_subscription "$SUBSCRIPTION" "$TOPIC;$push;$retry;604800s;$DEAD_LETTER_TOPIC;100;True" \
    "${PUSH[@]}" "${RETRY[@]}" --dead-letter-topic="$DEAD_LETTER_TOPIC" --max-delivery-attempts=100 \
    --message-retention-duration=7d --retain-acked-messages --expiration-period=never
  if redriving=$(subscription "$DEAD_LETTER_SUBSCRIPTION" 3); then # missing in a first dry run
    [[ $redriving ]] || push=';;' PUSH=()
    set_subscription "$DEAD_LETTER_SUBSCRIPTION" "$DEAD_LETTER_TOPIC;$push;$retry;2678400s;;;" \
      ${PUSH[@]+"${PUSH[@]}"} "${RETRY[@]}" --message-retention-duration=31d
  fi
  # Without these two roles Pub/Sub moves nothing to the dead-letter topic, and reports no error.
  number=NUMBER
  if look projects describe "$PROJECT" --format='value(projectNumber)'; then number=$FOUND; fi
  agent=service-$number@gcp-sa-pubsub.iam.gserviceaccount.com
  grant roles/pubsub.publisher 'pubsub topics' "$DEAD_LETTER_TOPIC" "$agent"
  grant roles/pubsub.subscriber 'pubsub subscriptions' "$SUBSCRIPTION" "$agent"
}

schedule() {
  step 'Hourly reconciliation'
  local settings wanted
  settings=(--location="$REGION" --schedule='17 * * * *' --time-zone=Etc/UTC --http-method=post
    --uri="$URL/reconcile" --oidc-service-account-email="$RECONCILE_ACCOUNT"
    --oidc-token-audience="$URL" --attempt-deadline="${FUNCTION_TIMEOUT}s")
  wanted="17 * * * *;Etc/UTC;$URL/reconcile;$RECONCILE_ACCOUNT;$URL;${FUNCTION_TIMEOUT}s"
  if ! look scheduler jobs describe "$JOB" --location="$REGION" --format="value[separator=';'](schedule,
      timeZone,httpTarget.uri,httpTarget.oidcToken.serviceAccountEmail,
      httpTarget.oidcToken.audience,attemptDeadline)"; then
    change "created the job $JOB" scheduler jobs create http "$JOB" "${settings[@]}"
  elif [[ $FOUND == "$wanted" ]]; then
    print_unchanged "the job $JOB"
  else
    change "updated the job $JOB" scheduler jobs update http "$JOB" "${settings[@]}"
  fi
}

# Writes the file, with its placeholders replaced, to $WORK/filled.json, and sets $HASH to its hash.
# The metric, alert or dashboard made from the file carries this hash. So a later run sends the file
# only if it has changed.
fill_in() { # FILE
  sed -e "s|\${FUNCTION}|$FUNCTION|g" -e "s|\${TOPIC}|$TOPIC|g" \
    -e "s|\${SUBSCRIPTION}|$SUBSCRIPTION|g" \
    -e "s|\${DEAD_LETTER_SUBSCRIPTION}|$DEAD_LETTER_SUBSCRIPTION|g" "$1" >"$WORK/filled.json"
  HASH=$(git hash-object "$WORK/filled.json")
}

insert() { # FILE FIELD: writes $WORK/FILE, the filled file with this field as its first
  printf '{\n  %s,\n' "$2" | cat - <(tail -n +2 "$WORK/filled.json") >"$WORK/$1"
}

# The relay's own metrics and alerts have a mark with the relay's name: a metric at the beginning of
# its description, an alert in its labels. Those with the mark but without a file are removed.
look_at_metrics() {
  look logging metrics list --format="value(name,description)" || true
  METRICS=$(awk -F'\t' -v mark="[$FUNCTION " 'index($2, mark) == 1' <<<"$FOUND")
}

look_at_alerts() {
  look alpha monitoring policies list --format="value[separator=' '](userLabels.relay,
    userLabels.relay_alert,userLabels.relay_hash,name,notificationChannels.list())" || true
  ALERTS=$(grep "^$FUNCTION " <<<"$FOUND") || true
}

look_at_dashboards() {
  look monitoring dashboards list --format='value(displayName,name,labels)' || true
  DASHBOARD=$(awk -F'\t' -v name="$FUNCTION" '$1 == name {print $2 "\t" $3}' <<<"$FOUND")
}

set_up_monitoring() {
  step 'Metrics, alerts, dashboard'
  local file name hash policy channels
  mkdir -p "$WORK/deploy/metrics" "$WORK/deploy/alerts"
  look_at_metrics
  for file in deploy/metrics/*.json; do
    name=$FUNCTION-$(basename "$file" .json)
    fill_in "$file"
    sed "2s/\"description\": \"/&[$FUNCTION ${HASH:0:12}] /" "$WORK/filled.json" >"$WORK/$file"
    case $'\n'$METRICS in
      *$'\n'"$name"$'\t'"[$FUNCTION ${HASH:0:12}]"*) print_unchanged "the metric $name" ;;
      *$'\n'"$name"$'\t'*)
        change "updated the metric $name" logging metrics update "$name" --config-from-file="$WORK/$file" ;;
      *) change "created the metric $name" logging metrics create "$name" --config-from-file="$WORK/$file" ;;
    esac
  done

  look_at_alerts
  for file in deploy/alerts/*.json; do
    name=$(basename "$file" .json) hash='' policy='' channels=''
    fill_in "$file"
    insert "$file" "\"userLabels\": {\"relay\": \"$FUNCTION\", \"relay_alert\": \"$name\", \"relay_hash\": \"$HASH\"}"
    read -r _ _ hash policy channels <<<"$(grep "^$FUNCTION $name " <<<"$ALERTS")" || true
    if [[ ! $policy ]]; then
      change "created the alert $name" alpha monitoring policies create \
        --policy-from-file="$WORK/$file" ${CHANNELS:+--notification-channels="$CHANNELS"}
    elif [[ $hash == "$HASH" && ${CHANNELS:-$channels} == "$channels" ]]; then
      print_unchanged "the alert $name"
    else
      change "updated the alert $name" alpha monitoring policies update "$policy" \
        --policy-from-file="$WORK/$file" --set-notification-channels="${CHANNELS:-$channels}"
    fi
  done
  while read -r _ name _ policy _; do
    [[ -z $name || -e deploy/alerts/$name.json ]] ||
      change "removed the alert $name, which has no file any more" alpha monitoring policies delete "$policy"
  done <<<"$ALERTS"
  while read -r name _; do
    [[ -z $name || -e deploy/metrics/${name#"$FUNCTION-"}.json ]] ||
      change "removed the metric $name, which has no file any more" logging metrics delete "$name"
  done <<<"$METRICS"

  look_at_dashboards
  fill_in deploy/dashboard.json
  insert deploy/dashboard.json "\"labels\": {\"relay-$HASH\": \"\"}"
  if [[ $DASHBOARD == *"relay-$HASH"* ]]; then
    print_unchanged 'the dashboard'
  else
    # An update would need the old dashboard's etag. Deleting it and creating a new one needs none.
    [[ -z $DASHBOARD ]] || change 'removed the old dashboard' monitoring dashboards delete "${DASHBOARD%%$'\t'*}"
    change 'created the dashboard' monitoring dashboards create --config-from-file="$WORK/deploy/dashboard.json"
  fi
}

# -- the other actions

confirm() { # QUESTION
  [[ $YES || $DRY_RUN ]] && return
  local answer=''
  read -r -p "$1 Type the project's id to go on: " answer || true
  [[ $answer == "$PROJECT" ]] || {
    echo 'Nothing was changed.'
    exit 1
  }
}

# Asks an API with curl and gcloud's login, where gcloud has no command. Prints the first whole
# number of the answer.
call_api() { # SERVICE PATH ARGUMENTS OF CURL...
  local override=CLOUDSDK_API_ENDPOINT_OVERRIDES_$1 service=$1 path=$2 url
  url=${!override:-https://$(tr '[:upper:]' '[:lower:]' <<<"$service").googleapis.com/}
  shift 2
  printf 'header = "Authorization: Bearer %s"\n' "$ACCESS_TOKEN" |
    curl --silent --fail --max-time 20 --config - "$url$path" "$@" |
    grep -Eo '"(int64Value|integerValue)": *"[0-9]+"' | head -n 1 | grep -Eo '[0-9]+"' |
    tr -d '"' || echo unknown
}

backlog() { # SUBSCRIPTION METRIC: its value, which is some minutes old
  local filter="metric.type=\"pubsub.googleapis.com/subscription/$2\""
  call_api MONITORING "v3/projects/$PROJECT/timeSeries" --get \
    --data-urlencode "filter=$filter AND resource.labels.subscription_id=\"$1\"" \
    --data-urlencode "interval.startTime=$(minutes_ago 10)" \
    --data-urlencode "interval.endTime=$(minutes_ago 0)"
}

minutes_ago() { # N: with the date command of Linux, or else of macOS
  date -u -d "$1 minutes ago" +%Y-%m-%dT%H:%M:%SZ 2>/dev/null || date -u -v "-${1}M" +%Y-%m-%dT%H:%M:%SZ
}

# Sets $FOUND to the time and these fields of the newest log line of the last day that matches.
last_line() { # FILTER FIELDS
  look logging read "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"$FUNCTION\" AND $1" \
    --limit=1 --freshness=1d --format="value[separator=' '](timestamp,$2)" || true
  FOUND=${FOUND:-none in the last 24 hours}
}

status() {
  local name group kind fields run complete needs_operator
  row() { printf '   %-22s%s\n' "$1" "$2"; }
  step 'Does it deliver?'
  look_at_function || failed 'It is not deployed.'
  row function "${FOUND#* }"
  last_line 'jsonPayload.outcome="delivered"' jsonPayload.project
  row 'last delivery' "$FOUND"
  last_line 'severity>=WARNING AND jsonPayload.outcome:*' jsonPayload.outcome,jsonPayload.detail
  row 'last problem' "$FOUND"
  ACCESS_TOKEN=$(gcloud auth print-access-token 2>/dev/null) || true
  look_at_subscriptions
  for name in "$SUBSCRIPTION" "$DEAD_LETTER_SUBSCRIPTION"; do
    step "What waits in $name?"
    row events "$(backlog "$name" num_undelivered_messages)"
    row 'oldest, in seconds' "$(backlog "$name" oldest_unacked_message_age)"
    row 'pushes to' "$(subscription "$name" 3 | grep . || echo nothing)"
  done
  step 'What is parked?'
  row 'dead letters' "$(call_api FIRESTORE "v1/projects/$PROJECT/databases/$DATABASE/documents:runAggregationQuery" \
    --header 'Content-Type: application/json' --data '{"structuredAggregationQuery": {"structuredQuery": {"from": [{"collectionId": "dead_letters"}]}, "aggregations": [{"count": {}}]}}'), discarded ones included"
  step 'When did the last reconciliation run?'
  last_line 'jsonPayload.reconciliation:*' jsonPayload.reconciliation.complete,jsonPayload.reconciliation.needs_operator
  read -r run complete needs_operator <<<"$FOUND"
  case $complete in
    True) row 'last run' "$run: ${needs_operator:-?} event(s) need an operator" ;;
    False) row 'last run' "$run: did not finish; ${needs_operator:-?} event(s) so far need an operator" ;;
    *) row 'last run' "$FOUND" ;;
  esac
  look scheduler jobs describe "$JOB" --location="$REGION" --format="value[separator=' '](state,schedule)" || true
  row schedule "${FOUND:-there is none}"
  step 'Are the indexes built?'
  look_at_indexes
  while read -r group kind fields; do
    row "$(sed -n "s/^$group $kind ${fields//\*/\\*}: //p" <<<"$FOUND" | grep . || echo missing)" "$group $kind $fields"
  done < <(wanted_indexes)
  printf '\n%s\n' "\`python -m relay check\` tests whether a delivery would work. \`python -m relay dead-letters list\` shows what is parked."
}

redrive() {
  step 'Redrive'
  look_at_function || [[ $DRY_RUN ]] || failed "There is no function $FUNCTION: deploy it first."
  # The dead-letter subscription has retries of its own: what fails again stays in it, and does not
  # slow the pushes of new events.
  change 'the dead-letter subscription pushes to the function: --status shows its backlog' \
    pubsub subscriptions update "$DEAD_LETTER_SUBSCRIPTION" "${PUSH[@]}"
  grant roles/run.invoker 'run services' "$FUNCTION" "$PUSH_ACCOUNT"
}

redrive_stop() {
  step 'End of the redrive'
  change 'the dead-letter subscription no longer pushes' \
    pubsub subscriptions update "$DEAD_LETTER_SUBSCRIPTION" --push-endpoint=
}

teardown() {
  confirm "This removes the relay $NAME from $PROJECT, and the messages that its subscriptions still hold."
  step 'Teardown'
  local name policy
  remove() { change "removed $1" "${@:2}"; }
  if look scheduler jobs describe "$JOB" --location="$REGION"; then
    remove "the job $JOB" scheduler jobs delete "$JOB" --location="$REGION"
  fi
  look_at_subscriptions
  for name in "$SUBSCRIPTION" "$DEAD_LETTER_SUBSCRIPTION"; do
    if subscription "$name" >/dev/null; then
      remove "the subscription $name" pubsub subscriptions delete "$name"
    fi
  done
  look pubsub topics list --format='value(name.basename())' || true
  if among "$DEAD_LETTER_TOPIC"; then
    remove "the topic $DEAD_LETTER_TOPIC" pubsub topics delete "$DEAD_LETTER_TOPIC"
  fi
  if look_at_function; then
    remove "the function $FUNCTION" functions delete "$FUNCTION" --gen2 --region="$REGION"
  fi
  # The alerts go first, because they read the metrics.
  look_at_alerts
  while read -r _ name _ policy _; do
    [[ -z $name ]] || remove "the alert $name" alpha monitoring policies delete "$policy"
  done <<<"$ALERTS"
  look_at_metrics
  while read -r name _; do
    [[ -z $name ]] || remove "the metric $name" logging metrics delete "$name"
  done <<<"$METRICS"
  look_at_dashboards
  [[ -z $DASHBOARD ]] || remove 'the dashboard' monitoring dashboards delete "${DASHBOARD%%$'\t'*}"
  look iam service-accounts list --format='value(email)' || true
  for name in "$FUNCTION_ACCOUNT" "$PUSH_ACCOUNT" "$RECONCILE_ACCOUNT"; do
    if among "$name"; then remove "the account $name" iam service-accounts delete "$name"; fi
  done
  echo "   kept: Firestore's data, the secret $SECRET, the topic $TOPIC, the APIs"
}

case $ACTION in
  deploy)
    print_sizes
    enable_apis
    make_accounts
    make_database
    make_indexes
    store_token
    make_topics
    deploy_function
    subscribe
    schedule
    set_up_monitoring
    ;;
  status) status ;;
  redrive) redrive ;;
  redrive-stop) redrive_stop ;;
  teardown) teardown ;;
esac

if [[ $ACTION == status ]]; then
  :
elif [[ $DRY_RUN ]]; then
  printf '\nDry run: nothing was changed. %d command(s) would run.\n' "$CHANGED"
  ((UNCHECKED == 0)) || printf '%d lookup(s) failed or were skipped: what they look for is assumed to be missing.\n' "$UNCHECKED"
elif ((CHANGED)); then
  printf '\nDone: %d change(s).\n' "$CHANGED"
else
  printf '\nDone: nothing had to be changed.\n'
fi
