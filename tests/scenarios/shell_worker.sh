curl -sN 'http://127.0.0.1:8080/events?channel=jobs&group=workers' | while IFS= read -r line; do
    case $line in
    'id: '*) id=${line#id: } ;;
    'data: '*) convert_picture "${line#data: }" && what=ack || what=nack
        curl -s -X POST "http://127.0.0.1:8080/events/$id/$what?group=workers" ;;
    esac
done
