# The other service, in shell with curl: makes thumbnails, at the gateway $GATEWAY, and answers with
# where they are. It has never heard of what is no picture.
curl -sN "$GATEWAY/events?channel=pictures&group=thumbnails&max_attempts=2" |
    while IFS= read -r line; do
        case $line in
        'id: '*) id=${line#id: } ;;
        'data: {"picture": "'*'.png"}')
            name=${line#'data: {"picture": "'}
            name=${name%'.png"}'}
            echo "made $name"
            curl -s -H 'Content-Type: application/json' -d "{\"thumbnail\": \"$name-64.png\"}" \
                "$GATEWAY/events/$id/ack?group=thumbnails"
            ;;
        'data: '*)
            echo "refused ${line#data: }"
            curl -s -X POST "$GATEWAY/events/$id/nack?group=thumbnails&reason=not%20a%20picture"
            ;;
        esac
    done
