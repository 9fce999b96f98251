#!/usr/bin/env bash
# From an empty project to a running relay; run again, it changes only what differs.
# Every step looks first, says what it did, and can be run again after a failure half-way.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'HELP'
Usage: ./deploy.sh --project PROJECT --region REGION [OPTION]...

Sets up, or brings in line, the webhook relay on Google Cloud: APIs, service accounts, Firestore,
the Svix token's secret, topics, the function, the push subscription, metrics, alerts, dashboard.

What to do (default: deploy)
  --status              what is deployed, the backlog, the dead letters
  --redrive             push the dead-letter subscription's messages to the function
  --redrive-stop        end that
  --teardown            remove what this made; never Firestore's data nor the token. Asks first
  --dry-run             print the commands that would change something, and change nothing
  --yes                 do not ask

Where
  --project PROJECT     required
  --region REGION       of the function and of a new Firestore database; required
  --name NAME           of the function, and in the names of all else   (webhook-relay)
  --topic TOPIC         where the platform publishes; made if not there (events)
  --database DATABASE   Firestore database                              ((default))

Svix
  --token-stdin         read the token from standard input, into the secret
  --secret SECRET       the secret that holds the token                 (svix-token)
  --svix-url URL        a self-hosted Svix                              (by the token's region)
  --no-create-applications
                        park events of projects that Svix does not know

The function
  --budget SECONDS      the longest a request works or waits, 25 to 540 (60)
  --cpu N               processors of an instance                       (1)
  --memory SIZE         of an instance                                  (512Mi)
  --concurrency N       requests at one instance, 1 to 1000             (500)
  --min-instances N     (1)
  --max-instances N     (5)
  --channel CHANNEL     notification channel of the alerts; may be repeated
  -h, --help            this text
HELP
}

# -- options

readonly RUNTIME=python313 # one that the whole suite runs on
ACTION=deploy DRY_RUN='' YES='' TOKEN_STDIN=''
PROJECT='' REGION='' NAME=webhook-relay TOPIC=events DATABASE='(default)'
SECRET=svix-token SVIX_URL='' CREATE_APPLICATIONS=true
BUDGET=60 CPU=1 MEMORY=512Mi CONCURRENCY=500 MIN_INSTANCES=1 MAX_INSTANCES=5 CHANNELS=''

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
    --project | --region | --name | --topic | --database | --secret | --svix-url | --budget | \
      --cpu | --memory | --concurrency | --min-instances | --max-instances | --channel)
      (($# > 1)) || wrong_usage "$1 wants a value."
      case $1 in
        --project) PROJECT=$2 ;; --region) REGION=$2 ;; --name) NAME=$2 ;; --topic) TOPIC=$2 ;;
        --database) DATABASE=$2 ;; --secret) SECRET=$2 ;; --svix-url) SVIX_URL=$2 ;;
        --budget) BUDGET=$2 ;; --cpu) CPU=$2 ;; --memory) MEMORY=$2 ;;
        --concurrency) CONCURRENCY=$2 ;; --min-instances) MIN_INSTANCES=$2 ;;
        --max-instances) MAX_INSTANCES=$2 ;; --channel) CHANNELS+=${CHANNELS:+,}$2 ;;
      esac
      shift
      ;;
    *) wrong_usage "There is no option $1." ;;
  esac
  shift
done

[[ $PROJECT ]] || wrong_usage '--project is missing.'
[[ $REGION ]] || wrong_usage '--region is missing.'
[[ $PROJECT =~ ^[a-z][a-z0-9-]{4,28}[a-z0-9]$ ]] || wrong_usage "--project $PROJECT is no project's id."
[[ $REGION =~ ^[a-z]+-[a-z]+[0-9]+$ ]] || wrong_usage "--region $REGION is no region, such as europe-west1."
[[ $NAME =~ ^[a-z][a-z0-9-]{0,17}[a-z0-9]$ ]] ||
  wrong_usage '--name is up to 19 of a-z, 0-9 and -: a service account is named by it and -push.'
[[ $TOPIC =~ ^[a-zA-Z][a-zA-Z0-9._~+%-]{2,200}$ && $TOPIC != goog* ]] ||
  wrong_usage "--topic $TOPIC is no topic's name."
[[ $SECRET =~ ^[a-zA-Z0-9_-]{1,255}$ ]] || wrong_usage "--secret $SECRET is no secret's name."
[[ -z $SVIX_URL || $SVIX_URL =~ ^https://[^[:space:],]+$ ]] || wrong_usage '--svix-url is an https URL.'
whole_number() { # NAME VALUE LOW HIGH
  if ! [[ $2 =~ ^[1-9][0-9]{0,3}$|^0$ ]] || (($2 < $3 || $2 > $4)); then
    wrong_usage "--$1 is $2: it is a whole number from $3 to $4."
  fi
}
whole_number budget "$BUDGET" 25 540
whole_number concurrency "$CONCURRENCY" 1 1000
whole_number cpu "$CPU" 1 8
whole_number max-instances "$MAX_INSTANCES" 1 1000
whole_number min-instances "$MIN_INSTANCES" 0 "$MAX_INSTANCES"

# Svix call 10 < budget < function's timeout < lease (budget + 30) < ack deadline, as relay/config.py
# has them: Settings derives the lease, and these two must lie on either side of it.
readonly FUNCTION_TIMEOUT=$((BUDGET + 15)) ACK_DEADLINE=$((BUDGET + 60))

readonly FUNCTION=$NAME
readonly SUBSCRIPTION=$NAME-push
readonly DEAD_LETTER_TOPIC=$NAME-dead-letters
readonly DEAD_LETTER_SUBSCRIPTION=$NAME-dead-letters
readonly FUNCTION_ACCOUNT=$NAME@$PROJECT.iam.gserviceaccount.com
readonly PUSH_ACCOUNT=$NAME-push@$PROJECT.iam.gserviceaccount.com
readonly APIS=(artifactregistry cloudbuild cloudfunctions firestore iam logging monitoring pubsub
  run secretmanager)

# -- how a step talks, looks, and changes something

STEP='' CHANGED=0
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

step() {
  STEP=$1
  printf '%s\n' "== $1"
}

same() { printf '   as it should be: %s\n' "$1"; }

failed() { # WHAT GCLOUD SAID
  printf '\nFailed at the step "%s".\n%s\n' "$STEP" "$1" >&2
  printf '%s\n' 'What was done so far stays, and is not done again: mend this and run the same command.' >&2
  case $1 in
    *PERMISSION_DENIED* | *'does not have permission'*)
      echo "The account of \`gcloud auth list\` needs roles/owner, or the step's own admin role, in $PROJECT." >&2 ;;
    *BILLING* | *billing*) echo "Link a billing account to $PROJECT." >&2 ;;
    *'currently select an active account'* | *UNAUTHENTICATED*) echo 'Run gcloud auth login.' >&2 ;;
  esac
  exit 1
}

look() { # ARGUMENTS OF GCLOUD...: its output
  gcloud "$@" --project="$PROJECT" --quiet 2>"$WORK/said" || failed "$(<"$WORK/said")"
}

exists() { # ARGUMENTS OF A DESCRIBE...: whether there is one; its output is in $FOUND
  if FOUND=$(gcloud "$@" --project="$PROJECT" --quiet 2>"$WORK/said"); then return 0; fi
  # A describe exits with 1 for what is not there and for a network that is down alike.
  grep -Eqi 'NOT_FOUND|not found|does not exist|status=\[404\]' "$WORK/said" || failed "$(<"$WORK/said")"
  return 1
}

change() { # WORDS ARGUMENTS OF GCLOUD...
  local words=$1
  shift
  CHANGED=$((CHANGED + 1))
  if [[ $DRY_RUN ]]; then
    printf '   would: gcloud%s\n' "$(printf ' %q' "$@" --project="$PROJECT" --quiet)"
    return
  fi
  gcloud "$@" --project="$PROJECT" --quiet </dev/null >"$WORK/said" 2>&1 || failed "$(<"$WORK/said")"
  printf '   %s\n' "$words"
}

grant() { # MEMBER ROLE GROUP... NAME, as gcloud calls the resource
  local member=$1 role=$2
  shift 2
  local group=("${@:1:$#-1}") name=${*: -1} words="granted $role to ${member#*:}" where=()
  [[ ${group[*]} != 'run services' ]] || where=(--region="$REGION")
  # What is not there yet, in a dry run, has no policy.
  if exists "${group[@]}" get-iam-policy "$name" "${where[@]}" --flatten='bindings[].members' \
    --format='value(bindings.role,bindings.members)' &&
    grep -Fqx "$role"$'\t'"$member" <<<"$FOUND"; then
    same "$role for ${member#*:}"
    return
  fi
  case ${group[*]} in
    'run services')
      change "$words" functions add-invoker-policy-binding "$name" "${where[@]}" --member="$member" ;;
    projects)
      change "$words" projects add-iam-policy-binding "$name" --member="$member" --role="$role" \
        --condition=None ;;
    *)
      change "$words" "${group[@]}" add-iam-policy-binding "$name" --member="$member" --role="$role" ;;
  esac
}

# -- the steps

enable_apis() {
  step 'APIs'
  local enabled missing=() api
  enabled=$(look services list --enabled --format='value(config.name)')
  for api in "${APIS[@]}"; do
    grep -Fqx "$api.googleapis.com" <<<"$enabled" || missing+=("$api.googleapis.com")
  done
  if ((${#missing[@]})); then
    change "enabled ${missing[*]}" services enable "${missing[@]}"
  else
    same "all ${#APIS[@]} are enabled"
  fi
}

make_account() { # EMAIL WORDS
  if exists iam service-accounts describe "$1" --format='value(email)'; then
    same "$1"
  else
    change "made $1" iam service-accounts create "${1%%@*}" --display-name="$2"
  fi
}

make_accounts() {
  step 'Service accounts'
  make_account "$FUNCTION_ACCOUNT" 'The webhook relay: Firestore and one secret'
  make_account "$PUSH_ACCOUNT" 'Pub/Sub pushing to the webhook relay'
}

make_database() {
  step 'Firestore'
  if ! exists firestore databases describe --database="$DATABASE" --format='value(type)'; then
    change "made the database $DATABASE" firestore databases create --database="$DATABASE" \
      --location="$REGION" --type=firestore-native
  elif [[ $FOUND != FIRESTORE_NATIVE ]]; then
    failed "The database $DATABASE is in Datastore mode: name another one with --database."
  else
    same "the database $DATABASE"
  fi
  grant "serviceAccount:$FUNCTION_ACCOUNT" roles/datastore.user projects "$PROJECT"
}

# A field that grows with time, or is large, caps writes at 500 a second or costs without use.
set_fields() {
  step 'TTL policies and index exemptions'
  local collection name config
  for field in events/first_claimed_at events/delivered_at events/expires_at \
    dead_letters/parked_at dead_letters/expires_at dead_letters/data dead_letters/attributes; do
    collection=${field%/*} name=${field#*/}
    config=''
    if exists firestore indexes fields describe "$name" --collection-group="$collection" \
      --database="$DATABASE" \
      --format='csv[no-heading](indexConfig.usesAncestorConfig,indexConfig.indexes.len(),ttlConfig.state)'; then
      config=$FOUND
    fi
    case $config in
      ,0,* | False,0,* | ,,* | False,,*) same "$field is not indexed" ;;
      *)
        change "exempted $field from indexing" firestore indexes fields update "$name" \
          --collection-group="$collection" --database="$DATABASE" --disable-indexes --async ;;
    esac
    [[ $name == expires_at ]] || continue
    case $config in
      *,ACTIVE | *,CREATING) same "$field is a TTL field" ;;
      *)
        change "made $field a TTL field" firestore fields ttls update "$name" \
          --collection-group="$collection" --database="$DATABASE" --enable-ttl --async ;;
    esac
  done
}

# The token goes from standard input to a file that only we can read, and from there to gcloud: it
# is never an argument, and never printed.
store_token() {
  step 'The Svix token'
  local held=''
  if ! exists secrets describe "$SECRET" --format='value(name)'; then
    [[ $TOKEN_STDIN ]] || failed "There is no secret $SECRET: give the token once, with --token-stdin."
    change "made the secret $SECRET" secrets create "$SECRET" --replication-policy=automatic
  else
    same "the secret $SECRET"
  fi
  if [[ $TOKEN_STDIN ]]; then
    (umask 077 && tr -d '[:space:]' >"$WORK/token")
    [[ -s $WORK/token ]] || failed 'Standard input held no token.'
    if exists secrets versions access latest --secret="$SECRET"; then held=$FOUND; fi
    if [[ $held == "$(<"$WORK/token")" ]]; then
      same 'its latest version'
    else
      change 'stored a new version' secrets versions add "$SECRET" --data-file="$WORK/token"
    fi
    held='' FOUND=''
    rm -f "$WORK/token"
  fi
  SECRET_VERSION=1 # of a dry run, where there is none yet
  if exists secrets versions list "$SECRET" --filter='state=ENABLED' --sort-by='~createTime' \
    --limit=1 --format='value(name.basename())'; then
    [[ $FOUND || $DRY_RUN ]] || failed "The secret $SECRET has no version: give the token with --token-stdin."
    SECRET_VERSION=${FOUND:-1}
  fi
  grant "serviceAccount:$FUNCTION_ACCOUNT" roles/secretmanager.secretAccessor secrets "$SECRET"
}

make_topic() {
  if exists pubsub topics describe "$1" --format='value(name)'; then
    same "the topic $1"
  else
    change "made the topic $1" pubsub topics create "$1"
  fi
}

make_topics() {
  step 'Topics'
  make_topic "$TOPIC"
  make_topic "$DEAD_LETTER_TOPIC"
  # Before anything is forwarded: a topic without a subscription loses what it gets.
  if exists pubsub subscriptions describe "$DEAD_LETTER_SUBSCRIPTION" --format='value(name)'; then
    same "the subscription $DEAD_LETTER_SUBSCRIPTION"
  else
    change "made the subscription $DEAD_LETTER_SUBSCRIPTION" \
      pubsub subscriptions create "$DEAD_LETTER_SUBSCRIPTION" --topic="$DEAD_LETTER_TOPIC" \
      --message-retention-duration=31d --expiration-period=never --ack-deadline="$ACK_DEADLINE"
  fi
}

deploy_function() {
  step 'The function'
  local environment settings version
  environment="GOOGLE_CLOUD_PROJECT=$PROJECT,FIRESTORE_DATABASE=$DATABASE"
  environment+=",REQUEST_BUDGET_SECONDS=$BUDGET,CREATE_APPLICATIONS=$CREATE_APPLICATIONS"
  [[ -z $SVIX_URL ]] || environment+=",SVIX_SERVER_URL=$SVIX_URL"
  settings=(--runtime="$RUNTIME" --entry-point=notifications --trigger-http
    --no-allow-unauthenticated --service-account="$FUNCTION_ACCOUNT" --cpu="$CPU"
    --memory="$MEMORY" --concurrency="$CONCURRENCY" --min-instances="$MIN_INSTANCES"
    --max-instances="$MAX_INSTANCES" --timeout="${FUNCTION_TIMEOUT}s"
    --set-env-vars="$environment" --set-secrets="SVIX_TOKEN=$SECRET:$SECRET_VERSION")
  # What is deployed carries the hash of its source and settings: only another one is built.
  version=$( (printf '%s\n' "${settings[@]}" && find main.py requirements.txt relay -type f \
    ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 cat) | git hash-object --stdin)
  if exists functions describe "$FUNCTION" --v2 --region="$REGION" \
    --format='value(labels.relay-version,state)' && [[ $FOUND == "$version"$'\t'ACTIVE ]]; then
    same "version ${version:0:12}"
  else
    change "deployed version ${version:0:12}" functions deploy "$FUNCTION" --gen2 \
      --region="$REGION" --source=. "${settings[@]}" --update-labels="relay-version=$version"
  fi
  grant "serviceAccount:$PUSH_ACCOUNT" roles/run.invoker run services "$FUNCTION"
  find_function
}

find_function() {
  URL=https://$FUNCTION.invalid # of a dry run, where there is none yet
  if exists functions describe "$FUNCTION" --v2 --region="$REGION" \
    --format='value(serviceConfig.uri)'; then
    URL=$FOUND
  elif [[ ! $DRY_RUN ]]; then
    failed "There is no function $FUNCTION: deploy it first."
  fi
  # All push flags together, always: an update that names only one wipes the others. The audience
  # is the service's root, which Cloud Run expects, and not the endpoint, Pub/Sub's default.
  PUSH=(--push-endpoint="$URL/notifications" --push-auth-service-account="$PUSH_ACCOUNT"
    --push-auth-token-audience="$URL")
}

subscribe() {
  step 'The push subscription'
  local settings wanted
  settings=("${PUSH[@]}" --ack-deadline="$ACK_DEADLINE" --min-retry-delay=10s
    --max-retry-delay=600s --dead-letter-topic="$DEAD_LETTER_TOPIC" --max-delivery-attempts=100
    --message-retention-duration=7d --retain-acked-messages --expiration-period=never)
  wanted=$(printf '%s;' "projects/$PROJECT/topics/$TOPIC" "$URL/notifications" "$PUSH_ACCOUNT" "$URL" "$ACK_DEADLINE" 10s 600s \
    "projects/$PROJECT/topics/$DEAD_LETTER_TOPIC" 100 604800s True)
  if ! exists pubsub subscriptions describe "$SUBSCRIPTION" --format="value[separator=';',terminator=';'](
      topic, pushConfig.pushEndpoint, pushConfig.oidcToken.serviceAccountEmail, pushConfig.oidcToken.audience,
      ackDeadlineSeconds, retryPolicy.minimumBackoff, retryPolicy.maximumBackoff,
      deadLetterPolicy.deadLetterTopic, deadLetterPolicy.maxDeliveryAttempts,
      messageRetentionDuration, retainAckedMessages)"; then
    change "made the subscription $SUBSCRIPTION" \
      pubsub subscriptions create "$SUBSCRIPTION" --topic="$TOPIC" "${settings[@]}"
  elif [[ ${FOUND%%;*} != "${wanted%%;*}" ]]; then
    # What the new one publishes would go nowhere.
    failed "$SUBSCRIPTION reads ${FOUND%%;*}, and a subscription's topic can't be changed: name that one with --topic, or the relay otherwise with --name."
  elif [[ ${FOUND%;}\; == "$wanted" ]]; then
    same "the subscription $SUBSCRIPTION"
  else
    change "brought the subscription $SUBSCRIPTION in line" \
      pubsub subscriptions update "$SUBSCRIPTION" "${settings[@]}"
  fi
  # Without these two, dead-lettering silently does not happen.
  local number agent
  number=$(look projects describe "$PROJECT" --format='value(projectNumber)')
  agent=serviceAccount:service-$number@gcp-sa-pubsub.iam.gserviceaccount.com
  grant "$agent" roles/pubsub.publisher pubsub topics "$DEAD_LETTER_TOPIC"
  grant "$agent" roles/pubsub.subscriber pubsub subscriptions "$SUBSCRIPTION"
}

# A file with its names filled in, as $WORK/file.json, and its hash: what was made from a file
# carries the hash, so that only another one is sent.
fill_in() { # FILE
  sed -e "s|\${FUNCTION}|$FUNCTION|g" -e "s|\${TOPIC}|$TOPIC|g" \
    -e "s|\${SUBSCRIPTION}|$SUBSCRIPTION|g" -e "s|\${PROJECT}|$PROJECT|g" \
    -e "s|\${DEAD_LETTER_TOPIC}|$DEAD_LETTER_TOPIC|g" \
    -e "s|\${DEAD_LETTER_SUBSCRIPTION}|$DEAD_LETTER_SUBSCRIPTION|g" "$1" >"$WORK/filled.json"
  HASH=$(git hash-object "$WORK/filled.json")
}

watch() {
  step 'Metrics, alerts, dashboard'
  local file name listed held
  for file in deploy/metrics/*.json; do
    name=$FUNCTION-$(basename "$file" .json)
    fill_in "$file"
    sed "0,/\"description\": \"/s//&[${HASH:0:12}] /" "$WORK/filled.json" >"$WORK/file.json"
    if ! exists logging metrics describe "$name" --format='value(description)'; then
      change "made the metric $name" logging metrics create "$name" \
        --config-from-file="$WORK/file.json"
    elif [[ $FOUND == "[${HASH:0:12}]"* ]]; then
      same "the metric $name"
    else
      change "changed the metric $name" logging metrics update "$name" \
        --config-from-file="$WORK/file.json"
    fi
  done

  listed=$(look alpha monitoring policies list --format='value(displayName,name,userLabels.relay_file)')
  for file in deploy/alerts/*.json; do
    fill_in "$file"
    HASH=$(git hash-object --stdin <<<"$HASH $CHANNELS") # whom it calls belongs to it
    sed "0,/{/s//{\n  \"userLabels\": {\"relay_file\": \"$HASH\"},/" "$WORK/filled.json" >"$WORK/file.json"
    name=$(sed -n 's/^  "displayName": "\(.*\)",$/\1/p' "$WORK/filled.json")
    held=$(awk -F'\t' -v name="$name" '$1 == name {print $2 "\t" $3}' <<<"$listed")
    if [[ -z $held ]]; then
      change "made the alert \"$name\"" alpha monitoring policies create \
        --policy-from-file="$WORK/file.json" --notification-channels="$CHANNELS"
    elif [[ ${held#*$'\t'} == "$HASH" ]]; then
      same "the alert \"$name\""
    else
      change "changed the alert \"$name\"" alpha monitoring policies update "${held%%$'\t'*}" \
        --policy-from-file="$WORK/file.json" --set-notification-channels="$CHANNELS"
    fi
  done

  fill_in deploy/dashboard.json
  sed "0,/{/s//{\n  \"labels\": {\"relay-$HASH\": \"\"},/" "$WORK/filled.json" >"$WORK/file.json"
  listed=$(look monitoring dashboards list --format='value(displayName,name,labels)')
  held=$(awk -F'\t' -v name="$FUNCTION" '$1 == name {print $2 "\t" $3}' <<<"$listed")
  if [[ $held == *"relay-$HASH"* ]]; then
    same 'the dashboard'
  else
    # An update would want the etag of what it replaces: made anew, it needs none.
    [[ -z $held ]] || change 'removed the old dashboard' monitoring dashboards delete "${held%%$'\t'*}"
    change 'made the dashboard' monitoring dashboards create --config-from-file="$WORK/file.json"
  fi
}

# -- the other things to do

confirm() { # QUESTION
  [[ $YES || $DRY_RUN ]] && return
  local answer=''
  read -r -p "$1 Type the project's id to go on: " answer || true
  [[ $answer == "$PROJECT" ]] || {
    echo 'Nothing was changed.'
    exit 1
  }
}

# A backlog is a metric, some minutes old; gcloud has no command that reads one.
backlog() { # SUBSCRIPTION METRIC
  local filter api=${CLOUDSDK_API_ENDPOINT_OVERRIDES_MONITORING:-https://monitoring.googleapis.com/}
  filter="metric.type=\"pubsub.googleapis.com/subscription/$2\""
  filter+=" AND resource.labels.subscription_id=\"$1\""
  printf 'header = "Authorization: Bearer %s"\n' "$(gcloud auth print-access-token 2>/dev/null)" |
    curl --silent --fail --max-time 20 --config - --get "${api}v3/projects/$PROJECT/timeSeries" \
      --data-urlencode "filter=$filter" \
      --data-urlencode "interval.startTime=$(minutes_ago 10)" \
      --data-urlencode "interval.endTime=$(minutes_ago 0)" |
    grep -Eo '"int64Value": *"[0-9]+"' | head -n 1 | grep -Eo '[0-9]+' | tail -n 1 || echo unknown
}

minutes_ago() { # on Linux, and on a Mac
  date -u -d "$1 minutes ago" +%Y-%m-%dT%H:%M:%SZ 2>/dev/null || date -u -v "-${1}M" +%Y-%m-%dT%H:%M:%SZ
}

status() {
  step 'The function'
  if exists functions describe "$FUNCTION" --v2 --region="$REGION" \
    --format='value[separator=" "](state,serviceConfig.uri,updateTime)'; then
    printf '   %s\n' "$FOUND"
  else
    echo '   not deployed'
    exit 1
  fi
  local subscription
  for subscription in "$SUBSCRIPTION" "$DEAD_LETTER_SUBSCRIPTION"; do
    step "The subscription $subscription"
    exists pubsub subscriptions describe "$subscription" --format='value(pushConfig.pushEndpoint)' || {
      echo '   not there'
      continue
    }
    printf '   %-22s%s\n' 'pushes to' "${FOUND:-nobody}" \
      'messages' "$(backlog "$subscription" num_undelivered_messages)" \
      'oldest unacked, s' "$(backlog "$subscription" oldest_unacked_message_age)"
  done
  if python3 -c 'import click, svix' 2>/dev/null && [[ ${SVIX_TOKEN-} ]]; then
    step 'Would a delivery work from here?'
    GOOGLE_CLOUD_PROJECT=$PROJECT FIRESTORE_DATABASE=$DATABASE python3 -m relay check || true
    step 'Dead letters that are parked'
    GOOGLE_CLOUD_PROJECT=$PROJECT FIRESTORE_DATABASE=$DATABASE python3 -m relay dead-letters list || true
  else
    echo "   With SVIX_TOKEN set, \`python -m relay check\` and \`dead-letters list\` say more."
  fi
}

redrive() {
  step 'Redrive'
  find_function
  # Under the dead-letter subscription's own delay: what fails again stays there, and slows nobody.
  change 'the dead-letter subscription pushes to the function: --status shows its backlog' \
    pubsub subscriptions update "$DEAD_LETTER_SUBSCRIPTION" "${PUSH[@]}" \
    --ack-deadline="$ACK_DEADLINE" --min-retry-delay=10s --max-retry-delay=600s
  grant "serviceAccount:$PUSH_ACCOUNT" roles/run.invoker run services "$FUNCTION"
}

redrive_stop() {
  step 'End of the redrive'
  change 'the dead-letter subscription pushes to nobody' \
    pubsub subscriptions update "$DEAD_LETTER_SUBSCRIPTION" --push-endpoint=
}

remove() { # WORDS DESCRIBE... -- DELETE...
  local words=$1 describe=()
  shift
  while [[ $1 != -- ]]; do
    describe+=("$1")
    shift
  done
  shift
  if exists "${describe[@]}" --format='value(name)'; then
    change "removed $words" "$@"
  else
    same "no $words"
  fi
}

teardown() {
  confirm "This removes the relay $NAME from $PROJECT, with what its subscriptions still hold."
  step 'Teardown'
  local file name
  for name in "$SUBSCRIPTION" "$DEAD_LETTER_SUBSCRIPTION"; do
    remove "the subscription $name" pubsub subscriptions describe "$name" -- \
      pubsub subscriptions delete "$name"
  done
  remove "the topic $DEAD_LETTER_TOPIC" pubsub topics describe "$DEAD_LETTER_TOPIC" -- \
    pubsub topics delete "$DEAD_LETTER_TOPIC"
  remove "the function $FUNCTION" functions describe "$FUNCTION" --v2 --region="$REGION" -- \
    functions delete "$FUNCTION" --gen2 --region="$REGION"
  # Alerts before the metrics that they read.
  local alerts dashboards
  alerts=$(look alpha monitoring policies list --format='value(displayName,name)')
  while read -r name; do
    [[ -z $name ]] || change 'removed an alert' alpha monitoring policies delete "$name"
  done < <(awk -F'\t' -v ours="$FUNCTION: " 'index($1, ours) == 1 {print $2}' <<<"$alerts")
  dashboards=$(look monitoring dashboards list --format='value(displayName,name)')
  while read -r name; do
    [[ -z $name ]] || change 'removed the dashboard' monitoring dashboards delete "$name"
  done < <(awk -F'\t' -v ours="$FUNCTION" '$1 == ours {print $2}' <<<"$dashboards")
  for file in deploy/metrics/*.json; do
    name=$FUNCTION-$(basename "$file" .json)
    remove "the metric $name" logging metrics describe "$name" -- logging metrics delete "$name"
  done
  for name in "$FUNCTION_ACCOUNT" "$PUSH_ACCOUNT"; do
    remove "the account $name" iam service-accounts describe "$name" -- \
      iam service-accounts delete "$name"
  done
  echo "   kept: Firestore's data, the secret $SECRET, the topic $TOPIC, the APIs"
}

case $ACTION in
  deploy)
    enable_apis
    make_accounts
    make_database
    set_fields
    store_token
    make_topics
    deploy_function
    subscribe
    watch
    ;;
  status) status ;;
  redrive) redrive ;;
  redrive-stop) redrive_stop ;;
  teardown) teardown ;;
esac

if [[ $ACTION == status ]]; then
  :
elif [[ $DRY_RUN ]]; then
  printf '\nA dry run: %d command(s) would change something, nothing was changed.\n' "$CHANGED"
elif ((CHANGED)); then
  printf '\nDone: %d change(s).\n' "$CHANGED"
else
  printf '\nDone: nothing had to be changed.\n'
fi
