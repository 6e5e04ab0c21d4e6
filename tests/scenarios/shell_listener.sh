# One of several instances of which one listens, in shell with curl: $GATEWAY is where, $NAME who.
# What it has published itself it acknowledges unheard.
curl -sN "$GATEWAY/events?channel=cache&group=leader&exclusive=true&max=100" |
    while IFS= read -r line; do
        case $line in
        'id: '*) id=${line#id: } ;;
        'data: '*)
            case $line in
            "data: {\"from\": \"$NAME\""*) ;;
            *) echo "heard $id ${line#data: }" ;;
            esac
            curl -s -w "%{http_code} $id\n" -X POST "$GATEWAY/events/$id/ack?group=leader"
            ;;
        esac
    done
